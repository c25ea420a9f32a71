"""The verdict: paired, by groups, exact for few changed images, and rarely "better" by chance."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import interval_coverage
import verdict_null
from busi_tune import files
from busi_tune.data.split import Split
from busi_tune.errors import BusiTuneError, FileError, RunError
from busi_tune.evaluation import intervals, verdict
from busi_tune.evaluation.metrics import Answers, numbers, summarise
from busi_tune.results import SCHEMAS, Difference, MetricsFile, Summary, VerdictFile, check

CLASSES = ("benign", "malignant", "normal")


def answers(labels: list[int], predicted: list[int]) -> Answers:
    return Answers(np.array(labels), 0.1 + 0.7 * np.eye(3)[predicted], CLASSES)


def edges_of(found: Difference) -> list[float]:
    """The interval of a difference; it must exist."""
    assert found["interval"] is not None
    return found["interval"]


def test_in_100_studies_without_a_gain_better_is_said_in_at_most_5() -> None:
    """The benchmark tests/benchmarks/verdict_null.py covers more cases and more studies."""
    signal = verdict_null.signal_for(0.8)
    for images in (117, 1000):
        found = verdict_null.verdicts(100, images=images, alike=0.5, signal=signal)
        assert verdict_null.count(found) <= 5
        assert verdict_null.count(found, "no evidence") >= 90


def test_a_gain_of_8_points_on_1000_images_is_seen_in_at_least_80_of_100_studies() -> None:
    signal = verdict_null.signal_for(0.8)
    gain = verdict_null.signal_for(0.88) - signal
    assert verdict_null.count(verdict_null.verdicts(100, images=1000, alike=0.5, signal=signal, gain=gain)) >= 80
    lost = verdict_null.signal_for(0.72) - signal
    assert (
        verdict_null.count(verdict_null.verdicts(20, images=1000, alike=0.5, signal=signal, gain=lost), "worse") >= 16
    )


def test_the_interval_of_the_difference_holds_the_truth() -> None:
    first, second, _ = interval_coverage.draw_pair(np.random.default_rng(1), 400_000)
    true = float((second.predicted == second.labels).mean() - (first.predicted == first.labels).mean())
    held = 0
    for number in range(500):
        one, two, groups = interval_coverage.draw_pair(np.random.default_rng((9, number)), 90)
        found = verdict.decide(one.predicted == one.labels, two.predicted == two.labels, groups)
        low, high = edges_of(found["accuracy"])
        held += low <= true <= high
    assert 465 <= held <= 488


def test_by_hand() -> None:
    """Seven of twenty images become right and none becomes wrong, so p is 2 * 0.5**7 = 0.015625."""
    labels = [0, 1] * 10
    before, after = labels.copy(), labels.copy()
    for place in range(7):
        before[place] = 2
    paths = [f"{place}.png" for place in range(20)]
    found = verdict.compare(answers(labels, before), answers(labels, after), np.arange(20), paths)
    accuracy = found["differences"]["accuracy"]
    interval = edges_of(accuracy)
    assert accuracy == {"baseline": 0.65, "tuned": 1.0, "difference": 0.35, "interval": interval}
    assert 0 < interval[0] < 0.35 < interval[1]
    assert found["mcnemar_p"] == found["grouped_p"] == 0.015625
    assert (found["changed_to_right"], found["changed_to_wrong"]) == (7, 0)
    assert (found["paths_to_right"], found["paths_to_wrong"]) == (paths[:7], [])
    assert found["verdict"] == "better"
    assert found["sentence"] == (
        "Better: the tuned model's accuracy is 35.0 points higher than the baseline's "
        f"(95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f})."
    )
    back = verdict.compare(answers(labels, after), answers(labels, before), np.arange(20))
    assert back["verdict"] == "worse"
    assert "35.0 points lower than the baseline's" in back["sentence"]
    assert back["differences"]["accuracy"]["interval"] == pytest.approx([-interval[1], -interval[0]], abs=0.051)


def test_every_metric_has_a_difference_and_the_whole_is_json() -> None:
    one, two, groups = interval_coverage.draw_pair(np.random.default_rng(4), 60)
    found = verdict.compare(one, two, groups)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    first, second = numbers(summarise(one)), numbers(summarise(two))
    assert set(found["differences"]) == {".".join(name) for name in first}
    for name in first:
        entry = found["differences"][".".join(name)]
        assert entry["difference"] == pytest.approx(second[name] - first[name])
        if name != ("log_loss",):
            low, high = edges_of(entry)
            assert low < entry["difference"] < high
    assert found["differences"]["log_loss"]["interval"] is None
    assert verdict.compare(one, two, groups) == found


@pytest.mark.parametrize(("gained", "lost", "p"), [(8, 2, 0.109375), (2, 8, 0.109375), (6, 0, 0.03125), (0, 0, 1.0)])
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    """For 8 gained and 2 lost images, p is 2 * (1 + 10 + 45) / 1024."""
    assert verdict.mcnemar(gained, lost) == pytest.approx(p)
    alone = np.array([1] * gained + [-1] * lost + [0] * 5)
    assert verdict.grouped_p(alone) == pytest.approx(p)


def test_groups_in_mcnemars_place_are_all_exchanges_of_signs() -> None:
    """For gains 2, 1 and -1 (sum 2), six of the eight sums are at least 2 away from zero."""
    assert verdict.grouped_p(np.array([2, 1, -1])) == 0.75
    generator = np.random.default_rng(0)
    for _ in range(20):
        gains = generator.integers(-3, 4, 9)
        sums = [abs(np.dot(signs, gains)) for signs in itertools.product((-1, 1), repeat=9)]
        assert verdict.grouped_p(gains) == pytest.approx(np.mean(np.array(sums) >= abs(gains.sum())))


def test_images_of_one_group_are_one_piece_of_evidence() -> None:
    labels = [0, 1] * 12
    before = [2] * 12 + labels[12:]
    alone = verdict.compare(answers(labels, before), answers(labels, labels), np.arange(24))
    assert alone["verdict"] == "better"
    three = np.concatenate([np.repeat([0, 1, 2], 4), np.arange(3, 15)])
    grouped = verdict.compare(answers(labels, before), answers(labels, labels), three)
    assert grouped["verdict"] == "no evidence"
    assert grouped["grouped_p"] == 0.25
    assert grouped["mcnemar_p"] == 2 * 0.5**12


def test_pairing_narrows_the_interval_of_models_that_err_alike() -> None:
    one, two, groups = interval_coverage.draw_pair(np.random.default_rng(2), 200)
    name = ("accuracy",)
    low, high = intervals.paired(one, two, groups)[name]
    alone = [intervals.measure(each, groups).edges[name] for each in (one, two)]
    unpaired = np.sqrt(sum((high - low) ** 2 for low, high in alone))
    assert high - low < 0.85 * unpaired


def test_the_interval_of_the_verdict_is_the_paired_one() -> None:
    one, two, groups = interval_coverage.draw_pair(np.random.default_rng(3), 150)
    quick = verdict.decide(one.predicted == one.labels, two.predicted == two.labels, groups)["accuracy"]["interval"]
    assert quick == pytest.approx(intervals.paired(one, two, groups)["accuracy",], abs=0.003)


def test_models_that_differ_in_few_images_have_a_wide_enough_interval() -> None:
    """Neither model makes an error; the earlier bootstrap gave an interval from 0 to 0."""
    labels = [0, 1] * 57
    first, second = answers(labels, labels), answers(labels, labels)
    second = Answers(second.labels, second.probabilities * 0.9 + 0.1 / 3, CLASSES)
    for name, entry in verdict.compare(first, second, np.arange(114))["differences"].items():
        low, high = entry["interval"] or (-1, 1)
        assert low < entry["difference"] < high, name
    low, high = edges_of(verdict.compare(first, second, np.arange(114))["differences"]["accuracy"])
    assert low == pytest.approx(-intervals.exact(0, 114)[1])
    assert high == -low


def test_the_baseline_itself_is_no_evidence() -> None:
    one, _, groups = interval_coverage.draw_pair(np.random.default_rng(5), 80)
    found = verdict.compare(one, one, groups)
    assert found["verdict"] == "no evidence"
    assert found["sentence"] == (
        "No evidence of a difference (both models predict alike); at this test size only differences "
        "above 10.0 points could be seen."
    )
    assert found["mcnemar_p"] == found["grouped_p"] == 1
    assert all(entry["difference"] == 0 and entry["interval"] is None for entry in found["differences"].values())


def test_no_evidence_ends_with_what_would_help() -> None:
    one, other, groups = interval_coverage.draw_pair(np.random.default_rng(5), 80)
    found = verdict.compare(one, other, groups)
    smallest, gain = found["detectable_difference"], abs(found["differences"]["accuracy"]["difference"])
    assert found["verdict"] == "no evidence"
    assert smallest is not None
    assert 0 < gain < smallest
    told = verdict.with_advice(found, 4 * found["images"], "`busi-tune crossval`")
    # Four times as many images halve the detectable difference.
    needed = found["images"] * (smallest / gain) ** 2
    said = re.fullmatch(
        rf"{re.escape(found['sentence'])} To see the {100 * gain:.1f} points measured here would take about ([\d,]+) "
        rf"images; `busi-tune crossval` predicts all {4 * found['images']}, and could see about {50 * smallest:.1f} "
        r"points\.",
        told["sentence"],
    )
    assert said
    assert needed <= int(said[1].replace(",", "")) <= 1.1 * needed
    assert verdict.with_advice(found, found["images"], "it")["sentence"].endswith(f"about {said[1]} images.")
    same = verdict.compare(one, one, groups)
    assert verdict.with_advice(same, found["images"], "it") == same
    labels = [0, 1] * 20
    better = verdict.compare(answers(labels, [1, 0] * 20), answers(labels, labels), np.arange(40))
    assert verdict.with_advice(better, 1000, "it") == better


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_few_groups_see_nothing_and_say_so(count: int) -> None:
    labels = [0, 1] * 14
    found = verdict.compare(answers(labels, [2] * 28), answers(labels, labels), np.arange(28) % count)
    assert json.dumps(found, allow_nan=False)
    assert found["detectable_difference"] is None
    if count < 6:
        assert found["verdict"] == "no evidence"
        assert f"with {count} groups of test images no difference could be seen" in found["sentence"]


@pytest.mark.parametrize(
    ("trials", "images", "accuracy", "expected"),
    [(1, 117, 0.85, 0.0), (2, 1, 0.5, 0.25), (20, 117, 1.0, 0.0), (20, 117, 0.9, 0.0482), (20, 117, 0.8, 0.0664)],
)
def test_optimism_by_hand(trials: int, images: int, accuracy: float, expected: float) -> None:
    """The better of two coin throws is heads with probability 0.75."""
    assert verdict.selection_optimism(trials, images, accuracy) == pytest.approx(expected, abs=5e-5)


def test_optimism_is_what_simulation_finds() -> None:
    drawn = np.random.default_rng(0).binomial(117, 0.85, size=(20_000, 20)).max(axis=1) / 117 - 0.85
    assert verdict.selection_optimism(20, 117, 0.85) == pytest.approx(drawn.mean(), abs=0.0005)
    assert verdict.selection_optimism(20, 117, 0.85, 0.75) == pytest.approx(drawn.mean() / 2, abs=0.0005)


def metrics_file(summary: Summary) -> MetricsFile:
    """The metrics.json of a run with the same metrics on both splits."""
    return {
        "schema": SCHEMAS[MetricsFile],
        "validation": summary,
        "test": {**summary, "groups": 1, "intervals": {}, "without_interval": {}},
        "best_epoch": 1,
        "tied_epochs": [1],
        "lowest_loss_epoch": 1,
        "epochs_run": 1,
        "stop_reason": "all epochs done",
        "leaked_test_images": 0.0,
        "effective_prior": {},
        "model_sha256": "",
    }


def make_runs(folder: Path) -> Split:
    """The files of two finished runs on the same split."""
    one, two, groups = interval_coverage.draw_pair(np.random.default_rng(6), 90)
    paths = [f"{CLASSES[label]}/{place}.png" for place, label in enumerate(one.labels)]
    used = pd.DataFrame({"path": paths, "class": [CLASSES[label] for label in one.labels], "group": groups})
    for name, found in (("baseline", one), ("best", two)):
        files.make_folder(folder / name)
        rows = [
            {"path": path, "class": path.partition("/")[0], "predicted": CLASSES[int(row.argmax())]}
            | {f"p_{label}": float(p) for label, p in zip(CLASSES, row, strict=True)}
            for path, row in zip(paths, found.probabilities, strict=True)
        ]
        files.write_csv(folder / name / "predictions.csv", rows)
        files.write_json(folder / name / "metrics.json", metrics_file(summarise(found)))
    return Split(used.assign(split="test", sha256="0" * 64), pd.DataFrame())


def test_two_run_folders_are_compared_as_their_answers_are(tmp_path: Path) -> None:
    split = make_runs(tmp_path)
    found = verdict.verdict_of(tmp_path / "baseline", tmp_path / "best", split, 20)
    one, two, groups = interval_coverage.draw_pair(np.random.default_rng(6), 90)
    expected = verdict.compare(one, two, groups, list(split.used["path"]))
    assert {**found, **expected, "sentence": found["sentence"]} == found
    assert found["sentence"].startswith(expected["sentence"])
    accuracy = float((one.predicted == one.labels).mean())
    assert found["trials"] == 20
    assert found["optimism_at_most"] == verdict.selection_optimism(20, len(groups), accuracy)
    assert 0 < (found["optimism"] or 0) < found["optimism_at_most"]
    assert check(json.loads(json.dumps(found, allow_nan=False)), VerdictFile, "it") == found
    again = verdict.verdict_of(tmp_path / "best", tmp_path / "best", split, 20)
    assert again["optimism"] is None


def test_a_class_without_test_images_may_still_be_answered(tmp_path: Path) -> None:
    """The class has no test images, but some images of other classes are still predicted as it."""
    split = make_runs(tmp_path)
    normal = split.used["class"] == "normal"
    kept = Split(split.used.assign(split=np.where(normal, "train", "test")), split.left_out)
    for name in ("baseline", "best"):
        path = tmp_path / name / "predictions.csv"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("normal/")))
    found = verdict.verdict_of(tmp_path / "baseline", tmp_path / "best", kept, 20)
    one, two, _ = interval_coverage.draw_pair(np.random.default_rng(6), 90)
    accuracy = found["differences"]["accuracy"]
    for told, each in ((accuracy["baseline"], one), (accuracy["tuned"], two)):
        lesions = each.subset(~normal.to_numpy())
        assert (lesions.predicted == CLASSES.index("normal")).any()
        expected = float((lesions.predicted == lesions.labels).mean())
        assert told == expected


def test_the_order_of_predictions_does_not_matter(tmp_path: Path) -> None:
    split = make_runs(tmp_path)
    found = verdict.verdict_of(tmp_path / "baseline", tmp_path / "best", split, 20)
    path = tmp_path / "best/predictions.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(rows)]))
    assert verdict.verdict_of(tmp_path / "baseline", tmp_path / "best", split, 20) == found


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda lines: lines[:-1], RunError, "was not tested on the test images of the study's split (1 differ"),
        (lambda lines: [*lines, "x.png,normal,normal,0,0,1"], RunError, "such as x.png); train the baseline"),
        (lambda lines: [lines[0].replace("p_normal", "p_other"), *lines[1:]], FileError, "is damaged"),
        (lambda lines: [*lines, lines[-1]], FileError, "is damaged"),
        (lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0] + ",x"], FileError, "is damaged"),
        (lambda lines: lines[1:], FileError, "is damaged"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    tmp_path: Path, change: object, kind: type[BusiTuneError], said: str
) -> None:
    split = make_runs(tmp_path)
    path = tmp_path / "baseline/predictions.csv"
    assert callable(change)
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(kind) as caught:
        verdict.verdict_of(tmp_path / "baseline", tmp_path / "best", split, 20)
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")
    path.unlink()
    with pytest.raises(FileError, match=r"predictions\.csv could not be read"):
        verdict.verdict_of(tmp_path / "baseline", tmp_path / "best", split, 20)


def test_the_detectable_difference_is_no_less_than_the_exact_test_needs() -> None:
    """Of 92 groups, eight must change. With much noise, the value is about 2.8 standard errors, the textbook value.

    The variance of a difference of paired proportions is (b + c - (b - c)^2 / n) / n^2 (Agresti, 2013).
    """
    gains = np.repeat([1.0, -1.0, 0.0], [1, 1, 90])
    assert verdict.detectable_difference(gains, 92) == 8 / 92
    gains = np.repeat([1.0, -1.0, 0.0], [30, 20, 42])
    error = np.sqrt(50 - 10**2 / 92) / 92 * np.sqrt(92 / 91)
    expected = error * (stats.t.isf(0.025, 91) + 0.8416)
    assert verdict.detectable_difference(gains - gains.mean(), 92) == pytest.approx(expected, abs=1e-5)
