"""--split FILE: every training command accepts it, records it, and refuses another one later."""

import json
from pathlib import Path

import pytest

from busi_tune import pipeline, results
from busi_tune.cli import exit_code
from busi_tune.cli.tables import show_run
from busi_tune.config import Config
from busi_tune.data.dataset import open_dataset
from busi_tune.data.split import read_split
from busi_tune.errors import ConfigError, DataError, RunError
from busi_tune.progress import Silent
from busi_tune.results import SeedsFile
from busi_tune.search_options import SearchOptions

SMALL = ["--arch", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "1", "--device", "cpu"]


@pytest.fixture
def split_files(phantoms: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two splits of the phantoms."""
    for seed in (0, 1):
        arguments = ["--data", str(phantoms), "--out", str(tmp_path / f"{seed}.csv"), "--split-seed", str(seed)]
        assert exit_code(["data", "split", *arguments]) == 0
    return tmp_path / "0.csv", tmp_path / "1.csv"


def test_a_run_takes_a_split_and_refuses_another(
    phantoms: Path, tmp_path: Path, split_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["baseline", "--data", str(phantoms), "--out", str(run), *SMALL]
    capsys.readouterr()
    assert exit_code([*command, "--split", str(split_files[0]), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    split = read_split(split_files[0])
    assert read_split(run / "split.csv").fingerprint() == split.fingerprint()
    assert figures["test"]["images"] == len(split.rows("test"))
    assert exit_code([*command, "--split", str(split_files[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == figures
    assert exit_code([*command, "--split", str(split_files[1])]) == 1
    assert "is not the split that the folder began with" in capsys.readouterr().err
    assert exit_code(command) == 1
    assert "strategy: 'file' -> 'grouped'" in capsys.readouterr().err


def test_split_options_beside_a_split_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--split", "s.csv", "--strategy", "random", "--split-seed", "3"]
    assert exit_code(["baseline", "--data", "x", *options]) == 2
    message = "--split already defines the split; remove --strategy, --split-seed."
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_strategy_file_needs_a_file(phantoms: Path, tmp_path: Path, tiny: Config) -> None:
    with pytest.raises(ConfigError) as error:
        pipeline.baseline(phantoms, tmp_path / "run", tiny.replace(strategy="file"), Silent())
    assert str(error.value) == "strategy is file, which needs a split; name it with --split FILE.csv."


@pytest.mark.slow
def test_files_that_changed_since_are_named(tmp_path: Path, tiny: Config) -> None:
    root = tmp_path / "data"
    pipeline.make_demo(root, Silent())
    pipeline.split_data(root, tmp_path / "s.csv", Config(), Silent())
    (root / "benign/benign (1).png").unlink()
    (root / "normal/normal (2).png").rename(root / "normal/new.png")
    with pytest.raises(DataError) as error:
        pipeline.baseline(
            root, tmp_path / "run", tiny.replace(strategy="file"), Silent(), split_file=tmp_path / "s.csv"
        )
    assert str(error.value) == (
        f"{root} does not have the images of the split: benign/benign (1).png vanished, normal/normal (2).png "
        f"vanished, normal/new.png appeared; restore the files, or make a new split instead of {tmp_path / 's.csv'}."
    )


@pytest.mark.slow
def test_a_study_and_its_export_keep_to_their_split(
    phantoms: Path, tmp_path: Path, split_files: tuple[Path, Path], tiny: Config
) -> None:
    config, options = tiny.replace(strategy="file", epochs=2), SearchOptions(trials=1, trial_epochs=1)
    study = tmp_path / "study"
    result = pipeline.search(phantoms, study, config, options, Silent(), split_file=split_files[0])
    fingerprint = read_split(split_files[0]).fingerprint()
    assert result["best"]["test"]["images"] == len(read_split(split_files[0]).rows("test"))
    with pytest.raises(DataError, match="is not the split that the folder began with"):
        pipeline.search(phantoms, study, config, options, Silent(), split_file=split_files[1])
    certificate = pipeline.export(study / "best", tmp_path / "export", phantoms, Silent())
    assert certificate["split"] == fingerprint
    other = pipeline.baseline(phantoms, tmp_path / "other", config, Silent(), split_file=split_files[1])
    assert other["test"]["images"] > 0
    with pytest.raises(RunError, match="holds the export of another run"):
        pipeline.export(tmp_path / "other", tmp_path / "export", phantoms, Silent())


@pytest.mark.slow
def test_seeds_share_the_split_and_are_compared(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["baseline", "--data", str(phantoms), "--out", str(run), *SMALL, "--seed", "7", "--seeds", "3", "--json"]
    assert exit_code(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seeds"]["seeds"] == [7, 8, 9]
    runs = [run, run / "seeds/8", run / "seeds/9"]
    assert len({(folder / "split.csv").read_bytes() for folder in runs}) == 1
    accuracies = [json.loads((folder / "metrics.json").read_text())["test"]["accuracy"] for folder in runs]
    found = result["seeds"]["metrics"]["accuracy"]
    mean = sum(accuracies) / 3
    assert found["mean"] == pytest.approx(mean)
    assert found["standard_deviation"] == pytest.approx((sum((a - mean) ** 2 for a in accuracies) / 2) ** 0.5)
    assert (found["lowest"], found["highest"]) == (min(accuracies), max(accuracies))
    assert results.read(run / results.SEEDS, SeedsFile) == result["seeds"]
    before = (run / "seeds/9/history.csv").stat().st_mtime_ns
    assert exit_code(command) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert (run / "seeds/9/history.csv").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_random_split_has_figures_of_leaked_and_clean_images(
    phantoms: Path, tmp_path: Path, tiny: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.replace(strategy="random", epochs=1)
    leaking = next(
        seed
        for seed in range(50)
        if open_dataset(phantoms, config.replace(split_seed=seed), Silent()).split.has_twin_in_training("test").any()
    )
    figures = pipeline.baseline(phantoms, tmp_path / "run", config.replace(split_seed=leaking), Silent())
    parts = [figures[name]["images"] for name in ("test", "test_leaked", "test_clean")]
    assert parts[0] == parts[1] + parts[2]
    assert figures["leaked_test_images"] == parts[1] / parts[0]
    right = [figures[name]["images"] * figures[name]["accuracy"] for name in ("test", "test_leaked", "test_clean")]
    assert right[0] == pytest.approx(right[1] + right[2])
    show_run(figures, Path("run"))
    printed = capsys.readouterr().out
    assert f"leaked {parts[1]}" in printed
    assert f"clean {parts[2]}" in printed
    assert max(len(line) for line in printed.splitlines() if line.startswith(" ")) <= 115
    row = next(line for line in printed.splitlines() if line.startswith(" accuracy"))
    for name in ("test", "test_leaked", "test_clean"):
        low, high = figures[name]["intervals"]["accuracy"]
        assert f"{low:.3f} to {high:.3f}" in row


def moved(source: Path, label: str, part: str, other: str) -> Path:
    """A copy of the split with the images of class `label` moved from `part` to `other`."""
    split = read_split(source)
    rows = (split.used["class"] == label) & (split.used["split"] == part)
    split.used.loc[rows, "split"] = other
    path = source.with_name(f"{part} without {label}.csv")
    split.write(path)
    return path


def test_a_split_without_a_class_in_training_is_refused(
    phantoms: Path, tmp_path: Path, split_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = moved(split_files[0], "normal", "train", "test")
    arguments = ["baseline", "--data", str(phantoms), "--out", str(tmp_path / "run"), *SMALL, "--split", str(path)]
    assert exit_code(arguments) == 1
    told = f"busi-tune: {path} has no training image of class normal; give each class some."
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_split_without_a_class_elsewhere_is_told(
    part: str, phantoms: Path, tmp_path: Path, split_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = moved(split_files[0], "normal", part, "train")
    arguments = ["baseline", "--data", str(phantoms), "--out", str(tmp_path / "run"), *SMALL, "--split", str(path)]
    assert exit_code(arguments) == 0
    told = (
        f"The {part} part of this split has no image of class normal: "
        "figures of that class, and the macro figures, are not defined there."
    )
    assert told in capsys.readouterr().err.splitlines()
    figures = json.loads((tmp_path / "run/metrics.json").read_text())
    assert figures[part]["macro_f1"] is None
    assert figures["validation" if part == "test" else "test"]["macro_f1"] is not None
