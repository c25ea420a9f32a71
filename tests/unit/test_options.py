"""Options of commands: the command line, TOML files, help texts and the reference page."""

import json
import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from busi_tune.cli import cli, exit_code
from busi_tune.cli.parameters import Setting
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.errors import ConfigError
from busi_tune.export_options import ExportOptions
from busi_tune.option import Options
from busi_tune.search_options import SearchOptions

ROOT = Path(__file__).parents[2]
CLASSES: dict[type[Options], tuple[str, ...]] = {
    Config: ("run", "baseline", "search", "crossval"),
    CrossvalOptions: ("crossval",),
    SearchOptions: ("run", "search"),
    ExportOptions: ("run", "export"),
}
# For each key, a TOML value that differs from the default.
SAMPLES = {
    "strategy": '"random"',
    "fractions": "[0.5, 0.25, 0.25]",
    "similarity": "0.9",
    "conflicts": '"keep"',
    "classes": '"benign,malignant"',
    "positive": '"benign"',
    "split_seed": "7",
    "arch": '"resnet18"',
    "weights": '"none"',
    "image_size": "64",
    "mean": "[0, 0.5, 1]",
    "std": "[0.5, 0.5, 1]",
    "horizontal_flip": "0",
    "class_weights": "false",
    "weighted_sampler": "false",
    "batch_size": "8",
    "epochs": "30",
    "learning_rate": "1e-4",
    "weight_decay": "0.1",
    "scheduler_factor": "0.1",
    "scheduler_patience": "2",
    "min_learning_rate": "1e-6",
    "early_stopping_patience": "4",
    "seed": "3",
    "precision": '"float32"',
    "device": '"cuda:1"',
    "trials": "4",
    "timeout": '"1h30m"',
    "epochs_total": "100",
    "trial_epochs": "5",
    "metric": '"val_accuracy"',
    "space": '"space.toml"',
    "pruner": '"none"',
    "keep_trials": "2",
    "confirm": "3",
    "confirm_seeds": "2",
    "audit_pruned": "1",
    "workers": "2",
    "storage": '"postgresql+psycopg://user@host/db"',
    "ray": '"auto"',
    "folds": "3",
    "fold": "2",
    "repeats": "2",
    "folds_file": '"folds.csv"',
    "log": '"mlflow"',
    "int8": "true",
    "float16": "true",
    "network_only": '"static"',
    "cam": "true",
    "sign": '"key.pem"',
    "max_drop": "0.05",
    "sensitivity": "0.95",
    "data": '"some/data"',
    "out": '"some/out"',
    "split": '"split.csv"',
    "groups": '"patients.csv"',
    "baseline": '"studies/other"',
    "export": '"exports/other"',
    "name": '"wide"',
    "seeds": "5",
    "demo": "true",
    "all": "true",
    "json": "true",
    "overwrite": "true",
    "dry_run": "true",
    "strict": "true",
}
REQUIRED = {
    "baseline": ["--data", "d"],
    "search": ["--data", "d"],
    "crossval": ["--data", "d"],
    "run": ["--data", "d"],
    "export": ["run", "--out", "o"],
    "report": ["studies/tuned"],
    "data audit": ["--data", "d"],
    "data split": ["--data", "d", "--out", "o"],
}


def commands() -> dict[str, click.Command]:
    """Every command by its full name."""
    inner = cli.commands["data"]
    assert isinstance(inner, click.Group)
    others = {name: command for name, command in cli.commands.items() if command is not inner}
    return others | {f"data {name}": command for name, command in inner.commands.items()}


COMMANDS = commands()


def settings(name: str) -> dict[str, Setting]:
    """The grouped options of a command by their key."""
    return {one.key: one for one in COMMANDS[name].params if isinstance(one, Setting)}


def parsed(name: str, arguments: list[str]) -> dict[str, object]:
    """The parameters that the command function would receive."""
    parent = click.Context(cli, info_name="busi-tune", **cli.context_settings)
    with COMMANDS[name].make_context(name, arguments, parent=parent) as context:
        return dict(context.params)


KEYS = [(name, key) for name in REQUIRED for key in settings(name)]


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_every_option_can_stand_in_a_file(name: str, key: str, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text(f"{key} = {SAMPLES[key]}\n")
    one = settings(name)[key]
    # The command line takes precedence, so the option is removed from it.
    rest = " ".join(REQUIRED[name]).replace(f"--{key} {key[0]}", "").split()
    found = parsed(name, [*rest, "--config", str(file)])[str(one.name)]
    value: object = json.loads(SAMPLES[key])
    wanted = one.stated.checked(value) if one.stated else value
    assert (str(found) if isinstance(found, Path) else found) == (str(wanted) if isinstance(wanted, Path) else wanted)
    assert type(found) is type(wanted) or isinstance(found, Path)
    assert found != one.default


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_is_an_option_of_its_commands(kind: type[Options]) -> None:
    for command in CLASSES[kind]:
        assert set(kind.options) <= set(settings(command))


@pytest.mark.parametrize(("command", "key"), [(CLASSES[kind][0], key) for kind in CLASSES for key in kind.options])
def test_the_command_line_wins_over_a_file(command: str, key: str, tmp_path: Path) -> None:
    one = settings(command)[key].stated
    assert one is not None
    file = tmp_path / "options.toml"
    file.write_text(f"{key} = {SAMPLES[key]}\n")
    other = {
        "classes": "a,b",
        "positive": "b",
        "timeout": "20m",
        "epochs_total": "7",
        "trial_epochs": "6",
        "space": "b.toml",
        "storage": "b",
        "ray": "b",
        "sensitivity": "0.5",
    }
    value = other.get(key, one.shown_default)
    spelled = [f"--no-{one.flag[2:]}" if value == "off" else one.flag] if one.kind is bool else [one.flag, value]
    found = parsed(command, [*REQUIRED[command], "--config", str(file), *spelled])[key]
    assert one.checked(found) == (one.checked(one.parse(value)) if key in other else one.default)


@pytest.mark.parametrize(
    ("command", "content", "problem"),
    [
        ("search", "trils = 4", "unknown key 'trils', did you mean 'trials'?"),
        ("search", "confirm_seed = 4", "unknown key 'confirm_seed', did you mean 'confirm_seeds'?"),
        ("search", "seeds = 4", "unknown key 'seeds', did you mean 'seed'?"),
        ("baseline", "config = 'b.toml'", "unknown key 'config', did you mean 'conflicts'?"),
        ("baseline", "workers = 4", "unknown key 'workers'"),
        ("baseline", "seeds = '4'", "seeds must be a whole number, not '4'"),
        ("baseline", "overwrite = 1", "overwrite must be true or false, not 1"),
        ("baseline", "data = 3", "data must be text, not 3"),
        ("export", "max_drop = 2", "max_drop must be at least 0 and below 1, not 2"),
        ("run", "trials = 0\nsensitivity = 3\nepochs = 'x'\nbatchsize = 2", None),
    ],
)
def test_files_that_are_refused(
    command: str, content: str, problem: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.toml"
    file.write_text(content)
    assert exit_code([*command.split(), *REQUIRED[command], "--config", str(file)]) == 2
    every = (
        "unknown key 'batchsize', did you mean 'batch_size'?; trials must be at least 1, not 0; "
        "sensitivity must be above 0 and below 1, not 3; epochs must be a whole number, not 'x'"
    )
    assert capsys.readouterr().err == f"busi-tune: {file}: {problem or every}.\n"


LIMITED = [
    (kind, one.name)
    for kind in CLASSES
    for one in kind.options.values()
    if one.choices or one.name in ("device", "epochs")
]


@pytest.mark.parametrize(("kind", "name"), LIMITED)
def test_python_and_the_command_line_refuse_in_the_same_words(
    kind: type[Options], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        kind.from_dict({name: "wrong"})
    for command in CLASSES[kind]:
        assert exit_code([command, *REQUIRED[command], f"{kind.options[name].flag}=wrong"]) == 2
        assert capsys.readouterr().err == f"busi-tune: {error.value}\n"


def test_all_that_is_wrong_stands_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "0", "--mean", "1,2", "--trials", "0", "--metric", "loss", "--timeout", "soon"]
    assert exit_code(["search", "--data", "nowhere", *arguments]) == 2
    assert capsys.readouterr().err == (
        "busi-tune: mean must be three numbers, not (1.0, 2.0); epochs must be between 1 and 10000, not 0; "
        "trials must be at least 1, not 0; timeout must be a span of time like 2h, 30m or 90s, not 'soon'; "
        "metric must be one of val_loss, val_accuracy, val_macro_f1, not 'loss'.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["search", "--data", "d", "--audit", "2"], "--audit-pruned"),
        (["search", "--data", "d", "--seeds", "2"], "No such option"),
        (["data", "split", "--data", "d", "--out", "s.csv", "--seed", "2"], "--split-seed"),
    ],
)
def test_spellings_of_old_are_no_options(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 2
    error = capsys.readouterr().err
    assert "No such option" in error
    assert hint in error


def test_the_environment_names_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSI_TUNE_STORAGE", "postgresql+psycopg://user@host/db")
    assert parsed("search", ["--data", "d"])["storage"] == "postgresql+psycopg://user@host/db"


def sections(text: str) -> dict[str, str]:
    """The sections of a help text by heading, without whitespace, because line breaks vary."""
    parts = re.split(r"^ *(\w+):\n", text, flags=re.MULTILINE)
    return {heading: "".join(body.split()) for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_groups_the_options_and_shows_their_defaults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*name.split(), "--help"]) == 0
    found = sections(capsys.readouterr().out)
    order = ["Data", "Model", "Training", "Search", "Budget", "Machines", "Output", "Other", "Examples"]
    assert list(found) == [heading for heading in order if heading in found]
    for one in settings(name).values():
        section = found[one.group.capitalize()]
        note = f"[{one.bounds}]" if one.bounds else ""
        note += "[required]" if one.required else f"[default: {one.shown_default}]" if one.shown_default else ""
        assert "/".join([",".join(one.opts), *one.secondary_opts]) in section
        assert "".join(f"{one.help}{note}".split()) in section
        assert str(one.help)[0].isupper()
    assert "[default:(" not in str(found)
    assert str(found).count("default:") == str(found).count("[default:")
    assert found["Examples"].count(f"busi-tune{name.replace(' ', '')}") == 2


def test_the_help_of_export(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    exit_code(["export", "--help"])
    assert capsys.readouterr().out == EXPORT_HELP


EXPORT_HELP = """\
Usage: busi-tune export [OPTIONS] RUN

  Export the finished run RUN to ONNX, and verify it against PyTorch on the test split.

  If RUN is a cross-validation, the exported model averages the probabilities of the models of all
  folds.

Data:
  --data DIR  Folder of the images that the run was trained on.  [default: the folder that
              training used]

Output:
  --out DIR                       Folder of the export.  [default: exports/NAME of the run or
                                  study]
  --int8 / --no-int8              Also write model.int8.onnx, if it passes its accuracy check on
                                  the validation split.  [default: off]
  --float16 / --no-float16        Also write model.float16.onnx, if it passes its accuracy check
                                  on the validation split.  [default: off]
  --network-only [none|dynamic|static]
                                  Also write network.onnx, the bare network: normalised float32
                                  pixels to logits, for a batch of any size (dynamic) or of one
                                  image (static).  [default: none]
  --cam / --no-cam                Also give the models an output `cam`, class activation maps that
                                  show where the network looked; needs a network that ends in
                                  global average pooling and one linear layer.  [default: off]
  --max-drop NUMBER               Largest loss of accuracy, and of sensitivity for the disease,
                                  that an int8 or float16 model may have on the validation split;
                                  0.01 is one percentage point.  [at least 0 and below 1]
                                  [default: 0.01]
  --sensitivity NUMBER            Intended sensitivity for the disease, as in 0.95; the validation
                                  split sets a threshold for it.  [above 0 and below 1]  [default:
                                  no threshold]
  --sign KEY.pem                  Ed25519 private key that signs the certificate; needs the extra
                                  sign.  [default: no signature]
  --fold INTEGER                  Fold of the cross-validation RUN whose model is exported.  [at
                                  least 1]  [default: the mean of all folds]
  --json                          Print one JSON object instead of tables.
  --overwrite                     Delete the result in the output folder and start over.

Other:
  --config FILE.toml  TOML file with these options, with underscores for dashes; the command line
                      wins over the file.
  -q, --quiet         Print only results and errors, no progress and no notices.
  -v, --verbose       Also print the log messages of libraries, and the traceback of an error.
  -h, --help          Show this message and exit.

  Examples:
    busi-tune export studies/tuned/best --out exports/tuned
    busi-tune export studies/tuned/best --out exports/small --int8 --sensitivity 0.95
"""


def written_commands() -> list[str]:
    """The commands shown in help texts, the README and the pages."""
    shown = [str(command.epilog) for command in (*COMMANDS.values(), cli, cli.commands["data"])]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    shown += [line for page in pages for line in re.findall(r"^\$ (busi-tune .*)", page.read_text(), re.MULTILINE)]
    lines = "\n".join(shown)
    return re.findall(r"busi-tune [^|\n]+$", lines, re.MULTILINE)


@pytest.mark.parametrize("line", written_commands())
def test_the_commands_that_are_shown_can_be_typed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text('arch = "resnet18"\n')
    words = shlex.split(line)[1:]
    name = " ".join(words[:2]) if words[0] == "data" else words[0]
    parsed(name, words[len(name.split()) :])


def test_the_reference_page_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "docs/reference/make_options.py"))
    assert script["PAGE"].read_text() == script["page"](), "run `make reference`"
