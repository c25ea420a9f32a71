"""The command line: help, exit codes, one-sentence errors, and no partly written results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from busi_tune.cli import cli, exit_code
from small_export import small_model, write_export

SMALL = ["--arch", "squeezenet1_1", "--weights", "none", "--image-size", "32", "--batch-size", "16", "--device", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and last stderr line of a command that must fail without a traceback and without output."""
    code = exit_code(arguments)
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return code, output.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "command", [[], *([name] for name in sorted(cli.commands))], ids=lambda c: " ".join(c) or "all"
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*command, "--help"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("Usage: busi-tune")
    assert output.err == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        *(([name, "--help"], 0) for name in sorted(cli.commands)),
        (["baseline", "--data", "d", "--epochs", "0"], 2),
        (["search", "--data", "d", "--metric", "loss"], 2),
        (["run", "--data", "d", "--max-drop", "2"], 2),
        (["export", "run", "--out", "o", "--sensitivity", "95"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_and_the_check_of_options_load_no_library_but_click(arguments: list[str], code: int) -> None:
    script = f"import sys; from busi_tune.cli import exit_code; assert exit_code({arguments}) == {code};"
    heavy = ("numpy", "torch", "rich", "pandas", "PIL", "optuna", "onnx", "onnxruntime")
    script += f"print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--epochs", "0"], 2, "epochs must be between 1 and 10000, not 0"),
        (["--learning-rate", "nan"], 2, "learning_rate must be between 1e-08 and 10, not nan"),
        (["--learning-rate", "fast"], 2, "learning_rate must be a number, not 'fast'"),
        (["--fractions", "0.7,0.3"], 2, "fractions must be three numbers, not (0.7, 0.3)"),
        (["--fractions", "0.7,0.2,0.2"], 2, "fractions must sum to 1, not 1.1"),
        (["--precision", "half"], 2, "precision must be one of auto, float32, bfloat16, not 'half'"),
        (["--device", "tpu"], 2, "device must be auto, cpu, cuda or cuda:N, not 'tpu'"),
        (["--device", "cuda"], 2, "PyTorch sees no CUDA GPU here"),
        (["--config", "missing.toml"], 1, "missing.toml could not be read"),
        (["--epoch", "3"], 2, "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options(
    options: list[str], code: int, words: str, here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options:
        import torch

        if torch.cuda.is_available():
            options = ["--device", "cuda:99"]
            words = "this machine has cuda:0"
    given, sentence = refused(["baseline", "--data", str(phantoms), *SMALL, *options], capsys)
    assert given == code
    assert words in sentence
    assert not list(here.rglob("config.json"))


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--arch", "resnet51"], 2, "unknown architecture 'resnet51', did you mean 'resnet50'?"),
        (["--arch", "inception_v3", "--image-size", "32"], 2, "does not take images of 32 pixels"),
        (
            ["--weights", "missing.pth"],
            1,
            "missing.pth could not be read (No such file or directory); use --weights FILE",
        ),
        (["--device", "cuda:99"], 2, "device is cuda:99, but "),
        (["--split", "missing.csv"], 1, "missing.csv could not be read: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_are_refused_before_the_data_is_read(
    options: list[str], code: int, words: str, overwrite: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data folder does not exist, so this refusal must come before the data check. No earlier run is deleted."""
    run = here / "studies/baseline"
    run.mkdir(parents=True)
    for name in ("config.json", "split.csv"):
        (run / name).write_text("an earlier run")
    given, sentence = refused(["baseline", "--data", "missing", *SMALL, *options, *overwrite], capsys)
    assert given == code
    assert words in sentence
    assert {path.read_text() for path in run.iterdir()} == {"an earlier run"}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--trial-epochs", "81"], 2, "trial_epochs must be between 1 and epochs (80), not 81"),
        (["--storage", "a", "--ray", "b"], 2, "storage and ray exclude each other"),
        (["--arch", "resnet51"], 2, "unknown architecture 'resnet51', did you mean 'resnet50'?"),
        (["--space", "missing.toml"], 1, "missing.toml could not be read: No such file or directory"),
        (["--space", "space.toml"], 2, "unknown key 'epoch'"),
        (["--storage", "mysql://host/db"], 2, "storage must be a URL like"),
        (["--weights", "missing.pth"], 1, "missing.pth could not be read (No such file or directory)"),
        (["--split", "missing.csv"], 1, "missing.csv could not be read: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("command", ["search", "run"])
def test_a_search_is_refused_before_the_data_is_read(
    command: str, options: list[str], code: int, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "space.toml").write_text("epoch = {low = 1, high = 2}\n")
    given, sentence = refused([command, "--data", "missing", *SMALL, *options], capsys)
    assert given == code
    assert words in sentence
    assert not list(here.rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["audit", "--data", "data", "--split", "missing.csv"], "missing.csv could not be read: No such file"),
        (
            ["split", "--data", "d", "--out", "s.csv", "--groups", "missing.csv"],
            "missing.csv could not be read: No such",
        ),
        (["split", "--data", "d", "--out", "s.csv", "--strategy", "file"], "strategy is file, which needs a split"),
    ],
)
def test_data_commands_look_at_their_files_before_the_images(
    arguments: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images are unreadable or their folder is missing, so this refusal must come before either check."""
    for name in ("a/0.png", "b/0.png"):
        (here / "data" / name).parent.mkdir(parents=True)
        (here / "data" / name).touch()
    assert words in refused(["data", *arguments], capsys)[1]


def test_a_config_file_counts_and_options_win_over_it(
    here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.toml").write_text('arch = "squeezenet1_1"\nweights = "none"\nimage_size = 32\nepochs = 2\nseed = 5\n')
    assert exit_code(["baseline", "--data", str(phantoms), "--config", "c.toml", "--epochs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs_run"] == 1
    config = json.loads((here / "studies/baseline/config.json").read_text())["config"]
    assert (config["seed"], config["epochs"], config["arch"]) == (5, 1, "squeezenet1_1")


def test_a_config_file_with_an_unknown_key(here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text("learningrate = 0.1\nepochs = 'many'\n")
    code, sentence = refused(["baseline", "--data", str(phantoms), "--config", "c.toml"], capsys)
    assert code == 2
    assert "unknown key 'learningrate', did you mean 'learning_rate'?" in sentence
    assert "epochs must be a whole number, not 'many'" in sentence
    assert not (here / "studies").exists()


def test_an_options_fault_is_not_the_files(here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text("image_size = 64\n")
    code, sentence = refused(["baseline", "--data", str(phantoms), "--config", "c.toml", "--image-size", "5"], capsys)
    assert code == 2
    assert sentence == "busi-tune: image_size must be between 16 and 1024, not 5."
    assert not (here / "studies").exists()


@pytest.mark.usefixtures("here")
def test_data_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("empty", "one/benign", "two/benign", "two/malignant"):
        Path(name).mkdir(parents=True)
    for folder in ("one/benign", "two/benign"):
        Image.new("L", (40, 40)).save(f"{folder}/a.png")
    cases = {
        "missing": "missing is not a folder",
        "empty": "empty has 0 class folders",
        "one": "one has 1 class folders",
        "two": "two has no images of class malignant",
    }
    for folder, words in cases.items():
        code, sentence = refused(["baseline", "--data", folder, *SMALL], capsys)
        assert code == 1
        assert words in sentence
    Image.new("L", (40, 40)).save("two/malignant/b.png")
    code, sentence = refused(["baseline", "--data", "two", *SMALL], capsys)
    assert code == 1
    assert "needs at least 6 groups in every class" in sentence


def test_broken_images_are_all_counted(here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(phantoms, "data")
    for number in range(12):
        Path(f"data/benign/broken {number:02d}.png").write_bytes(b"not an image" * (number > 0))
    code, sentence = refused(["baseline", "--data", "data", *SMALL], capsys)
    assert code == 1
    assert "12 of" in sentence
    assert "broken 00.png (empty)" in sentence
    assert "broken 09.png" in sentence
    assert "broken 10.png" not in sentence
    assert "and 2 more" in sentence
    assert not list(here.rglob("config.json"))


def test_an_image_of_too_many_pixels_is_refused(here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(phantoms, "data")
    Image.new("1", (8000, 6300)).save("data/benign/huge.png")
    code, sentence = refused(["baseline", "--data", "data", *SMALL], capsys)
    assert code == 1
    assert "huge.png (8000 x 6300 pixels are more than the 50,000,000 that are read)" in sentence
    assert not list(here.rglob("config.json"))


def test_another_configuration_is_refused_and_overwrite_starts_anew(
    here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["baseline", "--data", str(phantoms), *SMALL, "--epochs", "1"]
    assert exit_code(command) == 0
    first = capsys.readouterr().out
    model = next((here / "studies/baseline/checkpoints").glob("best-*"))
    before = model.stat()
    assert exit_code(command) == 0
    assert capsys.readouterr().out == first
    assert model.stat() == before
    code, sentence = refused([*command, "--learning-rate", "0.01", "--seed", "3"], capsys)
    assert code == 1
    assert "learning_rate: 0.001 -> 0.01; seed: 0 -> 3" in sentence
    assert exit_code([*command, "--seed", "3", "--overwrite"]) == 0
    config = json.loads((here / "studies/baseline/config.json").read_text())
    assert config["config"]["seed"] == 3


def test_changed_data_is_refused(here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(phantoms, "data")
    command = ["baseline", "--data", "data", *SMALL, "--epochs", "1"]
    assert exit_code(command) == 0
    capsys.readouterr()
    Path("data/normal/normal (1).png").rename(here / "data/normal/new.png")
    Image.new("L", (40, 40)).save("data/normal/normal (2).png")
    code, sentence = refused(command, capsys)
    assert code == 1
    for words in ("normal (1).png vanished", "new.png appeared", "normal (2).png changed"):
        assert words in sentence


def test_a_folder_with_other_things_in_it_is_left_alone(
    here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    for command in (["baseline"], ["search"]):
        for more in ([], ["--overwrite"]):
            code, sentence = refused([*command, "--data", str(phantoms), "--out", "mine", *SMALL, *more], capsys)
            assert code == 1
            assert "holds thesis.txt" in sentence
    assert [path.name for path in (here / "mine").iterdir()] == ["thesis.txt"]
    assert (here / "mine/thesis.txt").read_text() == "years of work"


def test_a_diverging_baseline_stops_with_its_reason(
    here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["baseline", "--data", str(phantoms), *SMALL, "--learning-rate", "10", "--weight-decay", "10"]
    code, sentence = refused([*arguments, "--min-learning-rate", "1", "--epochs", "60"], capsys)
    assert code == 1
    assert "loss of epoch" in sentence
    assert "lower the learning rate" in sentence
    assert not (here / "studies/baseline/metrics.json").exists()


def command_line(*arguments: str) -> list[str]:
    """The installed program, as the command line of a child process."""
    return [str(Path(sys.executable).with_name("busi-tune")), *arguments]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(here: Path, phantoms: Path) -> None:
    command = command_line("baseline", "--data", str(phantoms), *SMALL, "--epochs", "5000")
    environment = {**os.environ, "XDG_CACHE_HOME": str(here / "cache")}
    # A background job of a shell ignores SIGINT, and its child processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert errors.strip().splitlines()[-1].startswith("Interrupted.")
    assert "run the same command again" in errors
    assert "Traceback" not in errors


STARTED = "import os; from busi_tune.__main__ import main; os.write(1, b'x'); main()"
RESUMED = "All finished epochs are saved: run the same command again to continue."
ANEW = "No half-written result is left: run the same command again to start over."


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["baseline", "--data", "data", "--epochs", "5000", *SMALL], RESUMED),
        (["crossval", "--data", "data", "--epochs", "5000", *SMALL], RESUMED),
        (["data", "audit", "--data", "data"], ANEW),
        (["data", "split", "--data", "data", "--out", "split.csv"], ANEW),
        (["export", "run", "--out", "out"], ANEW),
        (["verify", "out"], "The check is not complete: run the same command again."),
        (
            ["predict", "out", "-"],
            "Each printed line is complete. With --csv FILE.csv, FILE.csv.partial keeps the rows, and --resume "
            "continues after them.",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_ctrl_c_at_the_start(command: list[str], says: str, here: Path, phantoms: Path) -> None:
    """Ctrl-C never gives a traceback: neither during the imports nor once the command runs."""
    shutil.copytree(phantoms, "data")
    environment = {**os.environ, "XDG_CACHE_HOME": str(here / "cache")}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", STARTED, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        for _ in range(3)
    ]
    signal.signal(signal.SIGINT, before)
    sentences = set()
    for moment, process in zip((0.02, 0.2, 0.6), started, strict=True):
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        text = errors.decode()
        assert "Traceback" not in text
        # A command that has already failed prints its error. While Python shuts down, Ctrl-C kills the process.
        if "busi-tune: " in text:
            assert process.returncode in {1, -signal.SIGINT}
        else:
            assert (process.returncode, out) == (130, b"")
            sentences.add(text.splitlines()[-1])
    assert sentences <= {"Interrupted before anything began.", f"Interrupted. {says}"}


def test_ctrl_c_in_the_middle_of_predict(here: Path) -> None:
    Image.new("L", (20, 20)).save("image.png")
    export = write_export(here / "export", {"model.onnx": small_model()})
    command = [sys.executable, "-m", "busi_tune", "predict", str(export), "-", "--jsonl", "--csv", "answers.csv"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"image.png\n" * 2000)
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["predicted"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    says = (
        "Interrupted. Each printed line is complete. With --csv FILE.csv, FILE.csv.partial keeps the rows, and "
        "--resume continues after them.\n"
    )
    assert (process.returncode, errors.decode()) == (130, says)
    assert {path.name for path in here.iterdir()} == {"export", "image.png", "answers.csv.partial"}


@pytest.mark.slow
def test_two_writers_of_one_folder(here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["baseline", "--data", str(phantoms), *SMALL, "--epochs", "5000"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(here / "cache")}
    process = subprocess.Popen(command_line(*command), stderr=subprocess.DEVNULL, env=environment)
    try:
        while not (here / "studies/baseline/state.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        code, sentence = refused(command, capsys)
    finally:
        process.kill()
        process.wait()
    assert code == 1
    assert "in use by another busi-tune process" in sentence


def in_a_small_disk(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a shell script with a real file system of 6 MB mounted on `folder`, in a mount namespace of its own."""
    mount = f"mount -t tmpfs -o size=6m tmpfs {folder}"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && {script}"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_a_full_disk_and_a_read_only_one(here: Path, phantoms: Path) -> None:
    disk = here / "disk"
    disk.mkdir()
    command = f"busi-tune baseline --data '{phantoms}' --epochs 1 --out {disk}/run {' '.join(SMALL)}"
    script = f"{command}; echo code $?; ls -A {disk}/run {disk}/run/checkpoints"
    full = in_a_small_disk(script, disk)
    assert "code 1" in full.stdout, full.stderr
    assert (
        full.stderr.strip()
        .splitlines()[-1]
        .endswith("could not be written: No space left on device; fix that and run the same command again.")
    )
    assert "Traceback" not in full.stderr
    assert ".tmp" not in full.stdout
    locked = in_a_small_disk(f"mount -o remount,ro {disk}; {command}; echo code $?", disk)
    assert "code 1" in locked.stdout
    assert "could not be created: Read-only file system" in locked.stderr
    assert "Traceback" not in locked.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
@pytest.mark.parametrize(
    "words",
    [
        "baseline",
        "crossval --folds 2",
        "search --trials 2 --trial-epochs 1",
        "search --trials 2 --trial-epochs 1 --folds 2",
    ],
)
def test_a_finished_result_in_a_folder_that_cannot_be_written(
    here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """A finished result on a read-only disk is shown as usual. With --overwrite, the folder's error is reported."""
    Path("disk").mkdir()
    words = f"{words} --out run --epochs 1 {' '.join(SMALL)}"
    assert exit_code([*words.split(), "--data", str(phantoms)]) == 0
    shown = capsys.readouterr().out
    again = f"busi-tune {words} --data '{phantoms}'"
    script = f"mount --bind run disk && mount -o remount,bind,ro disk && mount --move disk run && {again}"
    # The run has no lock file, so a lock would have to be created.
    assert not Path("run/.lock").exists()
    dry = f"{again} --dry-run > /dev/null; echo dry run $?"
    done = in_a_small_disk(f"umount {here}/disk; {script}; echo code $?; {dry}; {again} --overwrite", here / "disk")
    assert done.stdout == f"{shown}code 0\ndry run 0\n", done.stderr
    assert "Read-only file system; fix that and run the same command again." in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="user namespaces are Linux's")
def test_a_user_without_a_home_folder_is_told_what_to_set(here: Path, phantoms: Path) -> None:
    """The user ID belongs to no user, as in some containers."""
    environment = {name: value for name, value in os.environ.items() if name not in {"HOME", "XDG_CACHE_HOME"}}
    command = [sys.executable, "-m", "busi_tune", "data", "split", "--data", str(phantoms), "--out", "split.csv"]
    prefix = ["unshare", "--map-user=54321", "--map-group=54321"]
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "busi-tune: This user has no home folder for the cache of decoded images; set XDG_CACHE_HOME to a folder."
    )
    environment["XDG_CACHE_HOME"] = str(here / "cache")
    subprocess.run([*prefix, *command], capture_output=True, check=True, env=environment)


def test_a_class_whose_name_is_a_metrics_is_quoted(
    here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantoms, "data")
    Path("data/normal").rename(here / "data/macro")
    Path("data/benign").rename(here / "data/a_b.c:x:")
    assert exit_code(["baseline", "--data", "data", *SMALL, "--epochs", "1", "--seeds", "2"]) == 0
    assert "macro precision" not in capsys.readouterr().out
    assert exit_code(["baseline", "--data", "data", *SMALL, "--epochs", "1", "--seeds", "2", "--all"]) == 0
    runs, seeds = capsys.readouterr().out.split("The same training with")
    for table in (runs, seeds):
        for title in ("macro precision", '"macro" precision', '"macro" roc auc', "a_b.c:x: f1", "malignant recall"):
            assert table.count(f"\n {title}  ") == 1, (title, table)


def test_an_output_folder_that_cannot_be_written(
    here: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("")
    code, sentence = refused(["baseline", "--data", str(phantoms), "--out", "file/run", *SMALL], capsys)
    assert code == 1
    assert "file/run could not be created: Not a directory" in sentence
    code, sentence = refused(["baseline", "--data", str(phantoms), "--out", "/proc/run", *SMALL], capsys)
    assert code == 1
    assert "/proc/run could not be created" in sentence
    Path("dangling").symlink_to("nowhere")
    code, sentence = refused(["baseline", "--data", str(phantoms), "--out", "dangling", *SMALL], capsys)
    assert (code, "dangling is a link to nowhere, which does not exist" in sentence) == (1, True)
    assert here.exists()


@pytest.mark.parametrize("command", ["baseline", "search", "run", "data audit"])
def test_results_are_not_written_among_the_images(
    command: str, here: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = here / "own"
    shutil.copytree(phantoms, data)
    monkeypatch.chdir(data)
    assert exit_code([*command.split(), "--data", "."]) == 1
    assert "is inside the folder of images, ., and would count as a class; name an --out outside it." in (
        capsys.readouterr().err
    )
    assert sorted(path.name for path in data.iterdir()) == sorted(path.name for path in phantoms.iterdir())
