"""A nested search: each fold is predicted by a model chosen and trained without it, and the verdict uses all folds."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from busi_tune import pipeline, results
from busi_tune.config import Config
from busi_tune.data.dataset import Dataset, Part, open_dataset
from busi_tune.data.split import read_split
from busi_tune.errors import BusiTuneError
from busi_tune.evaluation.comparison import compare_folders
from busi_tune.progress import Progress, Silent
from busi_tune.report.inventory import inventory
from busi_tune.results import NestedFile, StudyFile
from busi_tune.search import session
from busi_tune.search_options import SearchOptions
from recorder import Recorder
from result_files import tree

pytestmark = pytest.mark.slow

OPTIONS = SearchOptions(trials=2, trial_epochs=1)


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return tiny.replace(arch="squeezenet1_1", epochs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nested") / "study"


@pytest.fixture(scope="module")
def told() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def result(phantoms: Path, config: Config, folder: Path, told: Recorder) -> NestedFile:
    return pipeline.search_folds(phantoms, folder, config, OPTIONS, told, folds=2)


def test_each_fold_is_answered_by_the_best_of_a_study_that_has_not_seen_it(result: NestedFile, folder: Path) -> None:
    folds = pd.read_csv(folder / "folds.csv", keep_default_na=False)
    answers = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
    assert list(answers["path"]) == list(folds["path"])
    assert list(answers["fold"]) == list(folds["fold"])
    for choice in result["choices"]:
        study = folder / "studies" / str(choice["fold"])
        split = read_split(study / "split.csv")
        own = answers[answers["fold"] == choice["fold"]]
        assert set(split.rows("test")["path"]) == set(own["path"])
        assert not set(split.rows("test")["group"]) & set(split.used.loc[split.used["split"] != "test", "group"])
        alone = pd.read_csv(study / "best" / "predictions.csv", keep_default_na=False)
        assert list(alone["p_benign"]) == list(own["p_benign"])
        assert choice["tuned_accuracy"] == (own["class"] == own["predicted"]).mean()
        assert results.read(study / "study.json", StudyFile)["split"] == split.fingerprint()
    assert [choice["trials"] for choice in result["choices"]] == [2, 2]


def test_the_verdict_is_the_comparison_of_the_pooled_answers_and_judges_the_procedure(
    result: NestedFile, folder: Path
) -> None:
    found = compare_folders(folder / "baseline", folder)
    assert found["differences"] == result["differences"]
    assert found["grouped_p"] == result["grouped_p"]
    assert "including the search" in result["judged"]
    assert results.read(folder / "nested_verdict.json", NestedFile) == result
    assert result["baseline"]["pooled"]["accuracy"] == result["differences"]["accuracy"]["baseline"]
    assert result["tuned"]["pooled"]["accuracy"] == result["differences"]["accuracy"]["tuned"]


def test_it_is_one_entry_of_a_list_and_has_a_page(result: NestedFile, folder: Path) -> None:
    (entry,) = inventory(folder.parent)
    assert (entry["kind"], entry["state"], entry["detail"]) == ("nested search", "finished", "2 folds")
    assert entry["accuracy"] == result["tuned"]["pooled"]["accuracy"]
    assert entry["next"] == f"busi-tune report {folder}"
    found = pipeline.report(folder, Silent())
    assert (found["kind"], found["finished"], found["nested"]) == ("nested search", True, result)
    assert found["sections"][-5:] == ["coverage", "nested", "folds", "mistakes", "repeat"]
    assert result["sentence"] in found["verdict"]
    assert found["answers"]["images"] == result["tuned"]["pooled"]["images"]
    assert all(mistake["nearest"] is not None for mistake in found["answers"]["mistakes"])
    assert "--folds 2 --trials 2 --trial-epochs 1" in found["commands"][0]
    page = (folder / results.REPORT_PAGE).read_text()
    assert "Each fold: the trial that its study chose by" in page


def test_the_page_of_a_search_that_has_not_ended_says_so(result: NestedFile, folder: Path, tmp_path: Path) -> None:
    assert result["choices"]
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    (half / results.NESTED_VERDICT).unlink()
    shutil.rmtree(half / "studies" / "2" / "best")
    found = pipeline.report(half, Silent())
    assert not found["finished"]
    assert found["verdict"].startswith("This search has not ended: 1 of 2 studies have a best trial.")
    assert found["sections"] == ["summary", "data", "folds", "repeat"]


def test_the_choices_and_their_agreement_are_shown(result: NestedFile) -> None:
    assert set(result["agreement"]) == {"learning_rate", "weight_decay", "scheduler_patience"}
    for name, agreed in result["agreement"].items():
        assert agreed["values"] == [choice["params"][name] for choice in result["choices"]]
        assert 0 <= agreed["spread"] <= 1
    rates = np.log([float(str(value)) for value in result["agreement"]["learning_rate"]["values"]])
    assert result["agreement"]["learning_rate"]["spread"] == pytest.approx(np.ptp(rates) / np.log(1e-2 / 1e-5))
    assert result["agreement"]["learning_rate"]["by_chance"] == pytest.approx(1 / 3)


def test_the_cost_is_said_first(result: NestedFile, told: Recorder) -> None:
    assert result["choices"]
    first, *rest = told.notices
    # Each fold takes two epochs of the baseline, one of the second trial, and one more of the best trial.
    assert first.startswith("2 folds with a study of 2 trials each: 4 trials and at most 8 epochs, ")
    hours = [text for text in rest if text.startswith("The first epoch took ")]
    assert len(hours) == 1
    assert "hours" in hours[0]


@pytest.mark.usefixtures("result")
def test_a_finished_one_is_not_done_again_and_another_is_refused(folder: Path, phantoms: Path, config: Config) -> None:
    before = tree(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("state.json")}
    pipeline.search_folds(phantoms, folder, config, OPTIONS, Silent(), folds=2)
    assert tree(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("state.json")} == times
    for other, options, count, problem in [
        (config.replace(learning_rate=0.5), OPTIONS, 2, "learning_rate"),
        (config, OPTIONS, 3, "has 2 folds, not 3"),
        (config.replace(strategy="random"), OPTIONS, 2, "strategy must be grouped"),
        (config, SearchOptions(trials=2, trial_epochs=1, storage="postgresql+psycopg://a@b/c"), 2, "exclude each"),
        (config, SearchOptions(trials=2, trial_epochs=2), 2, "another study"),
    ]:
        with pytest.raises(BusiTuneError, match=problem) as caught:
            pipeline.search_folds(phantoms, folder, other, options, Silent(), folds=count)
        assert "\n" not in str(caught.value)
    assert tree(folder) == before


@pytest.mark.usefixtures("result")
def test_a_cross_validation_that_there_is_becomes_the_baseline(
    folder: Path, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    place = folder / "baseline"
    before = tree(place)
    found = pipeline.search_folds(phantoms, tmp_path / "study", config, OPTIONS, Silent(), folds=2, baseline_run=place)
    assert tree(place) == before
    expected = {name: content for name, content in tree(folder).items() if not name.startswith("baseline/")}
    assert tree(tmp_path / "study") == expected
    assert found == results.read(folder / "nested_verdict.json", NestedFile)


class Stop(Exception):
    """Ends a command from inside, in place of a kill."""


class Killer(Silent):
    """A progress display that stops the command at its n-th step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        self.left -= 1
        if not self.left:
            raise Stop


@pytest.mark.usefixtures("result")
def test_stopped_again_and_again_it_ends_with_the_same_bytes(
    folder: Path, phantoms: Path, config: Config, tmp_path: Path
) -> None:
    stops = 0
    while True:
        try:
            pipeline.search_folds(phantoms, tmp_path / "study", config, OPTIONS, Killer(3 + stops), folds=2)
        except Stop:
            stops += 1
            continue
        break
    assert stops >= 3
    assert tree(tmp_path / "study") == tree(folder)


def memory_images(folder: Path, groups: int) -> None:
    """Random blobs with random classes, in groups of two similar images.

    Only a model that has seen one image of a group can predict the other.
    """
    generator = np.random.default_rng(0)
    labels = generator.permutation(["benign", "malignant"] * (groups // 2))
    for number, label in enumerate(labels):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        blobs = np.kron(generator.integers(0, 256, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        Image.fromarray(blobs).save(place / f"{number:03d}.png")
        lighter = np.clip(blobs.astype(np.int64) + 2, 0, 255).astype(np.uint8)
        Image.fromarray(lighter).save(place / f"{number:03d} again.png")


class Leaking(Dataset):
    """A data set with a planted leak: the outer fold's images are in training and are also the validation images."""

    def part(self, name: str, size: int, progress: Progress) -> Part:
        outer = super().part("test", size, progress)
        if name != "train":
            return outer
        own = super().part(name, size, progress)
        rows, labels = (np.concatenate(both) for both in ((own.rows, outer.rows), (own.labels, outer.labels)))
        return Part(own.images, rows, labels, own.paths + outer.paths)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose class a model can only memorise."""
    data = tmp_path_factory.mktemp("memory") / "data"
    memory_images(data, 24)
    return data


def chance(memory: Path, folder: Path, tiny: Config) -> float:
    """The probability that random answers are right on at least as many outer images as the nested search was."""
    config = tiny.replace(epochs=10, batch_size=4, positive="malignant")
    space = memory.parent / "space.toml"
    space.write_text("[learning_rate]\nlow = 0.001\nhigh = 0.002\n")
    options, baseline = SearchOptions(trials=2, pruner="none", space=space), memory.parent / "baseline"
    found = pipeline.search_folds(memory, folder, config, options, Silent(), folds=2, baseline_run=baseline)
    table = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
    assert found["images"] == len(table) == 48
    # The two images of a group get the same answer, so one of them counts.
    table = table[~table["path"].str.contains("again")]
    hits = int((table["class"] == table["predicted"]).sum())
    return float(stats.binomtest(hits, len(table), 0.5, alternative="greater").pvalue)


def test_what_only_memory_of_the_outer_fold_could_answer_stays_at_chance(
    memory: Path, tiny: Config, tmp_path: Path
) -> None:
    assert chance(memory, tmp_path / "study", tiny) > 0.01


def test_a_study_that_saw_the_outer_fold_would_be_found_out(
    memory: Path, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(*given: Any, **named: Any) -> Dataset:
        found = open_dataset(*given, **named)
        return Leaking(found.listing, found.split)

    monkeypatch.setattr(session, "open_dataset", leaking)
    assert chance(memory, tmp_path / "study", tiny) < 0.01
