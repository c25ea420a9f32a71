"""A cross-validation: each image is predicted once, by a model trained without it, with any kind of worker."""

import json
import shutil
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from busi_tune import pipeline, results
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.data.split import read_split
from busi_tune.errors import BusiTuneError, RunError
from busi_tune.evaluation.comparison import compare_folders
from busi_tune.progress import Silent
from busi_tune.results import CrossvalFile, CrossvalResult, MetricsFile
from busi_tune.search_options import SearchOptions
from result_files import tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return tiny.replace(arch="squeezenet1_1", epochs=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crossval") / "study"


@pytest.fixture(scope="module")
def result(phantoms: Path, config: Config, study: Path) -> CrossvalResult:
    return pipeline.crossval(phantoms, study, config, CrossvalOptions(folds=3, repeats=2), Silent())


def test_each_image_is_answered_once_by_a_model_that_has_not_seen_it(result: CrossvalResult, study: Path) -> None:
    answers = pd.read_csv(study / "predictions.csv", keep_default_na=False)
    folds = pd.read_csv(study / "folds.csv", keep_default_na=False)
    assert list(answers["path"]) == list(folds["path"])
    assert list(answers["fold"]) == list(folds["fold"])
    for entry in result["folds"]:
        own = answers[answers["fold"] == entry["fold"]]
        run = study / entry["run"]
        split = read_split(run / "split.csv")
        assert set(own["path"]) == set(split.rows("test")["path"])
        assert not set(split.rows("test")["group"]) & set(split.used.loc[split.used["split"] != "test", "group"])
        alone = pd.read_csv(run / "predictions.csv", keep_default_na=False)
        pd.testing.assert_frame_equal(
            own.drop(columns="fold").reset_index(drop=True), alone[own.drop(columns="fold").columns]
        )


def test_the_pooled_figures_are_those_of_all_answers(result: CrossvalResult, study: Path) -> None:
    answers = pd.read_csv(study / "predictions.csv", keep_default_na=False)
    pooled = result["pooled"]
    assert pooled["images"] == len(answers)
    assert pooled["accuracy"] == pytest.approx(accuracy_score(answers["class"], answers["predicted"]), abs=1e-12)
    assert pooled["macro_f1"] == pytest.approx(
        f1_score(answers["class"], answers["predicted"], average="macro"), abs=1e-12
    )
    low, high = pooled["intervals"]["accuracy"]
    assert 0 <= low < pooled["accuracy"] < high <= 1
    assert result["spread"]["accuracy"]["lowest"] == min(entry["test"]["accuracy"] for entry in result["folds"])
    stored = results.read(study / "pooled.json", CrossvalFile)
    assert stored["pooled"] == pooled


def test_further_partitions_are_cross_validations_of_their_own(result: CrossvalResult, study: Path) -> None:
    second = results.read(study / "repeats" / "2" / "pooled.json", CrossvalFile)
    accuracies = [result["pooled"]["accuracy"], second["pooled"]["accuracy"]]
    assert result["repeats"]["accuracy"]["lowest"] == min(accuracies)
    assert result["repeats"]["accuracy"]["highest"] == max(accuracies)
    assert (study / "folds.csv").read_bytes() != (study / "repeats" / "2" / "folds.csv").read_bytes()


def test_two_workers_end_with_the_same_bytes(
    result: CrossvalResult, study: Path, phantoms: Path, config: Config
) -> None:
    other = study.parent / "two"
    found = pipeline.crossval(phantoms, other, config, CrossvalOptions(folds=3, workers=2), Silent())
    assert found["pooled"] == result["pooled"]
    expected = {path: content for path, content in tree(study).items() if not path.startswith("repeats/")}
    assert tree(other) == expected


def test_a_file_of_folds_is_used_as_it_is_and_a_fold_is_a_run(
    result: CrossvalResult, study: Path, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    found = pipeline.crossval(
        phantoms,
        tmp_path / "study",
        config.replace(split_seed=9),
        CrossvalOptions(folds=3),
        Silent(),
        folds_file=study / "folds.csv",
    )
    assert (tmp_path / "study" / "folds.csv").read_bytes() == (study / "folds.csv").read_bytes()
    assert found["pooled"]["images"] == result["pooled"]["images"]
    again = pipeline.baseline(
        phantoms,
        study / "folds" / "1",
        config.replace(strategy="grouped"),
        Silent(),
    )
    assert again == results.read(study / "folds" / "1" / "metrics.json", MetricsFile)


def test_a_finished_one_is_shown_and_another_is_refused(
    result: CrossvalResult, study: Path, phantoms: Path, config: Config
) -> None:
    options = CrossvalOptions(folds=3, repeats=2)
    assert pipeline.crossval(phantoms, study, config, options, Silent()) == result
    for other, changed, problem in [
        (config.replace(learning_rate=0.5), options, "learning_rate"),
        (config, CrossvalOptions(folds=4), "has 3 folds, not 4"),
        (config.replace(strategy="random"), options, "strategy must be grouped"),
        (config, CrossvalOptions(folds=60), "folds"),
    ]:
        with pytest.raises(BusiTuneError, match=problem) as caught:
            pipeline.crossval(phantoms, study, other, changed, Silent())
        assert str(caught.value).count("\n") == 0
    assert json.loads((study / "crossval.json").read_text())["folds"] == 3


@pytest.mark.usefixtures("result")
def test_two_cross_validations_on_the_same_folds_are_compared_image_by_image(
    study: Path, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    options = CrossvalOptions(folds=3)
    pipeline.crossval(
        phantoms, other, config.replace(learning_rate=1e-5), options, Silent(), folds_file=study / "folds.csv"
    )
    found = compare_folders(study, other)
    first, second = (pd.read_csv(folder / "predictions.csv", keep_default_na=False) for folder in (study, other))
    right, now = (table["class"] == table["predicted"] for table in (first, second))
    assert found["images"] == len(first)
    assert found["differences"]["accuracy"]["difference"] == pytest.approx(now.mean() - right.mean(), abs=1e-12)
    assert found["changed_to_right"] == (now & ~right).sum()
    assert sorted(found.get("paths_to_wrong", [])) == sorted(first["path"][right & ~now])
    low, high = found["differences"]["accuracy"]["interval"] or [0, 0]
    assert low < found["differences"]["accuracy"]["difference"] < high
    swapped = compare_folders(other, study)
    assert swapped["differences"]["accuracy"]["difference"] == -found["differences"]["accuracy"]["difference"]
    assert swapped["mcnemar_p"] == found["mcnemar_p"]


@pytest.mark.usefixtures("result")
def test_what_was_not_made_alike_is_not_compared(study: Path, tmp_path: Path) -> None:
    for other, problem in [
        (study / "folds" / "1", r"is a cross-validation and .* a run; compare two of a kind\.$"),
        (study / "repeats" / "2", r"do not have the same folds: .* differ; "),
        (tmp_path, r"is neither a finished run nor a finished cross-validation; "),
    ]:
        with pytest.raises(RunError, match=problem):
            compare_folders(study, other)
    with pytest.raises(RunError, match="do not have the same split: "):
        compare_folders(study / "folds" / "1", study / "folds" / "2")


@pytest.mark.usefixtures("result")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("too many", r"^60 folds need as many groups of near-duplicates in every class, and .* has \d+; ask for fewer"),
        ("one class in one fold", r"^Fold \d of 3 gets no image of class normal in its test part; "),
        ("other data", r" does not have the images of the split: .*; restore the files"),
        ("another number", r"^The file of folds has 3 folds, not 2; give --folds 3\.$"),
    ],
)
def test_what_cannot_be_folded_is_refused_in_a_sentence_and_leaves_nothing(
    change: str, problem: str, study: Path, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    table = pd.read_csv(study / "folds.csv", keep_default_na=False)
    shutil.copy(study / "folds.excluded.csv", tmp_path)
    if change == "one class in one fold":
        table.loc[table["class"] == "normal", "fold"] = 2
    if change == "other data":
        table.loc[3, "sha256"] = "0" * 64
    table.to_csv(tmp_path / "folds.csv", index=False)
    given = None if change == "too many" else tmp_path / "folds.csv"
    options = CrossvalOptions(folds={"too many": 60, "another number": 2}.get(change, 3))
    with pytest.raises(BusiTuneError, match=problem) as caught:
        pipeline.crossval(phantoms, tmp_path / "study", config, options, Silent(), folds_file=given)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "study").rglob("*") if not path.name.endswith(".lock")]


def test_folds_fit_images_whose_names_the_file_system_spells_otherwise(
    phantoms: Path, config: Config, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    image = data / "benign" / "benign (10).png"
    image.rename(image.with_name(unicodedata.normalize("NFD", f"é {image.name}")))
    short, options = config.replace(epochs=1), CrossvalOptions(folds=2)
    first = pipeline.crossval(data, tmp_path / "first", short, options, Silent())
    folds = tmp_path / "first" / "folds.csv"
    second = pipeline.crossval(data, tmp_path / "second", short, options, Silent(), folds_file=folds)
    assert second["pooled"] == first["pooled"]
    assert folds.read_bytes() == (tmp_path / "second" / "folds.csv").read_bytes()
    assert unicodedata.normalize("NFC", f"é {image.name}") in folds.read_text()


def test_images_are_decoded_once_for_all_folds_and_workers(
    phantoms: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = CrossvalOptions(folds=2, workers=2)
    pipeline.crossval(phantoms, tmp_path / "study", config.replace(epochs=1), options, Silent())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    sizes = [path for path in kept if path.suffix == ".npy"]
    # One file of images at the network's size, and one of thumbnails for finding groups.
    assert len(sizes) == 2, sorted(kept)
    pipeline.search_folds(
        phantoms, tmp_path / "nested", config.replace(epochs=1), SearchOptions(trials=1), Silent(), folds=2
    )
    assert {path: path.stat().st_mtime_ns for path in sizes} == {path: kept[path] for path in sizes}
