"""The types of all results: the JSON files that the tool writes, and the output of `--json`.

Every document names its schema in the key `schema`, as `busi-tune.NAME/VERSION`. Readers accept keys that they do not
know, and refuse a version that they do not know. The JSON Schemas in docs/reference/schemas are made from these types.
The files of runs and studies also hold the SHA-256 of their content, so that a later change is noticed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, TypeVar, cast

import msgspec

from busi_tune import files
from busi_tune.errors import FileError

Scalar = None | bool | int | float | str
Json = Scalar | list[Scalar]
Interval = list[float]
Matrix = list[list[int]]
VerdictWord = Literal["better", "worse", "no evidence"]
TwinKind = Literal["copy", "near", "mirrored", "cropped"]
T = TypeVar("T")

# The files of result folders.
METRICS = "metrics.json"
SEEDS = "seeds.json"
IDENTITY = "config.json"
SOURCE = "data.json"
STATE = "state.json"
VERDICT = "verdict.json"
AUDIT = "audit.json"
SPLIT = "split.csv"
FOLDS = "folds.csv"
CROSSVAL = "crossval.json"
POOLED = "pooled.json"
NESTED = "nested.json"
NESTED_VERDICT = "nested_verdict.json"
HISTORY = "history.csv"
PREDICTIONS = "predictions.csv"
CURVES = "learning_curves.png"
CONFUSION = "confusion_matrix.png"
# The key of a document's own SHA-256.
CONTENT = "sha256"


class ClassMetrics(TypedDict):
    """One class against the others; None where a metric is not defined."""

    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None
    average_precision: float | None
    images: int


class BinaryMetrics(TypedDict):
    """The disease against the rest, or against benign alone, where `accuracy` is given as well."""

    accuracy: NotRequired[float | None]
    sensitivity: float | None
    specificity: float | None
    roc_auc: float | None
    average_precision: float | None


class Summary(TypedDict):
    """All metrics of a split of at least one image; None where a metric is not defined.

    A disease of another name than malignant is named by `positive`, and its keys say so.
    """

    accuracy: float
    macro_precision: float | None
    macro_recall: float | None
    macro_f1: float | None
    balanced_accuracy: float | None
    matthews_correlation: float
    macro_roc_auc: float | None
    macro_average_precision: float | None
    log_loss: float
    brier: float | None
    calibration_error: float | None
    per_class: dict[str, ClassMetrics]
    malignant_vs_rest: NotRequired[BinaryMetrics]
    benign_vs_malignant: NotRequired[BinaryMetrics]
    positive_vs_rest: NotRequired[BinaryMetrics]
    benign_vs_positive: NotRequired[BinaryMetrics]
    positive: NotRequired[str]
    images: int
    confusion_matrix: Matrix


class Intervals(TypedDict, total=False):
    """95 % intervals, [low, high], under the names of their metrics; a metric without an interval is left out."""

    accuracy: Interval
    macro_precision: Interval
    macro_recall: Interval
    macro_f1: Interval
    balanced_accuracy: Interval
    matthews_correlation: Interval
    macro_roc_auc: Interval
    macro_average_precision: Interval
    brier: Interval
    calibration_error: Interval
    per_class: dict[str, dict[str, Interval]]
    malignant_vs_rest: dict[str, Interval]
    benign_vs_malignant: dict[str, Interval]
    positive_vs_rest: dict[str, Interval]
    benign_vs_positive: dict[str, Interval]


class Spread(TypedDict):
    """The intervals of a summary over groups of images, and why a metric, by its dotted name, has none."""

    groups: int
    intervals: Intervals
    without_interval: dict[str, str]


class TestSummary(Summary, Spread):
    """All metrics of the test split, with intervals."""


class TestFigures(TypedDict):
    """The metrics of the test split; where some images have a twin in training, also of these and of the others."""

    test: TestSummary
    test_leaked: NotRequired[TestSummary]
    test_clean: NotRequired[TestSummary]


class MetricsFile(TestFigures):
    """metrics.json: the figures of a finished run; `validation` is of the images that chose the checkpoint.

    `files` has the SHA-256 of each file that was made with them.
    """

    schema: str
    validation: Summary
    best_epoch: int
    tied_epochs: list[int]
    lowest_loss_epoch: int
    epochs_run: int
    stop_reason: str
    leaked_test_images: float
    effective_prior: dict[str, float]
    model_sha256: str
    files: NotRequired[dict[str, str]]


class SeedMetric(TypedDict):
    """One test metric over runs that differ in their seed alone."""

    mean: float
    standard_deviation: float
    lowest: float
    highest: float


class SeedsFile(TypedDict):
    """seeds.json: how much of each metric the seed alone changes."""

    schema: str
    seeds: list[int]
    metrics: dict[str, SeedMetric]


class FoldFigures(TypedDict):
    """One fold of a cross-validation: its run, relative to the folder, and its figures on its own test part."""

    fold: int
    run: str
    best_epoch: int
    epochs_run: int
    test: TestSummary


class CrossvalIdentityFile(TypedDict):
    """crossval.json: what a cross-validation is of."""

    schema: str
    config: dict[str, Json]
    weights_sha256: str
    folds: int
    folds_sha256: str


class CrossvalFile(TypedDict):
    """pooled.json: the figures of all answers together, of each fold, and their spread over the folds."""

    schema: str
    folds: list[FoldFigures]
    spread: dict[str, SeedMetric]
    pooled: TestSummary


class CrossvalResult(CrossvalFile):
    """The output of `crossval`: pooled.json, and the pooled figures' spread over several partitions, if any."""

    repeats: dict[str, SeedMetric]


class BaselineResult(MetricsFile):
    """The output of `baseline`: metrics.json, and with `--seeds` the comparison of the seeds."""

    seeds: NotRequired[SeedsFile]


class RunIdentityFile(TypedDict):
    """config.json: what a run is of."""

    schema: str
    config: dict[str, Json]
    classes: list[str]
    split: str
    weights_sha256: str
    environment: dict[str, Json]


class DataFile(TypedDict):
    """data.json: the folder of the images when the run was last opened."""

    schema: str
    folder: str


class EpochRecord(TypedDict):
    """One epoch, as a row of history.csv has it."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    learning_rate: float
    seconds: float
    images_per_second: float


class StoppingState(TypedDict):
    """Which epoch is the best so far, and since when the validation loss has not fallen."""

    patience: int
    best_epoch: int
    best_accuracy: float
    best_accuracy_loss: float
    tied_epochs: list[int]
    lowest_loss_epoch: int
    lowest_loss: float


class CheckpointEntry(TypedDict):
    """A checkpoint file's name and content."""

    file: str
    sha256: str


class TrainingValues(TypedDict):
    """The plain values that training carries from one epoch to the next; `stop_reason` is "" until it ends."""

    history: list[EpochRecord]
    scheduler: dict[str, Json]
    learning_rate: float
    watcher: StoppingState
    stop_reason: str


class StateFile(TrainingValues):
    """state.json: all that a run needs to go on, but for the tensors in its checkpoints ("last" and "best")."""

    schema: str
    checkpoints: dict[str, CheckpointEntry]


class Difference(TypedDict):
    """A metric of two models on the same images: `difference` is tuned less baseline, with its 95 % interval."""

    baseline: float
    tuned: float
    difference: float
    interval: Interval | None


class Comparison(TypedDict):
    """Two models on the same images, paired by image and by group."""

    verdict: VerdictWord
    sentence: str
    groups: int
    grouped_p: float
    detectable_difference: float | None
    images: int
    changed_to_right: int
    changed_to_wrong: int
    mcnemar_p: float
    differences: dict[str, Difference]
    paths_to_right: NotRequired[list[str]]
    paths_to_wrong: NotRequired[list[str]]


class CompareResult(Comparison):
    """The output of `compare`: two folders, differences being second less first."""

    schema: str
    first: str
    second: str


class VerdictFile(Comparison):
    """verdict.json: baseline against tuned model on the test images, and the optimism of the selection."""

    schema: str
    trials: int
    optimism: float | None
    optimism_at_most: float


class NestedIdentityFile(TypedDict):
    """nested.json: what a nested search is of; each fold's study says the rest."""

    schema: str
    config: dict[str, Json]
    folds: int
    folds_sha256: str


class FoldChoice(TypedDict):
    """What the study of one outer fold chose, by its validation value, and what that scored on the fold itself."""

    fold: int
    trial: int
    trials: int
    params: dict[str, Json]
    value: float | None
    baseline_accuracy: float
    tuned_accuracy: float


class Agreement(TypedDict):
    """How far the folds' choices of a parameter lie apart, as a share of its range, and how far random ones would.

    Of choices without an order: the share of pairs of folds that differ.
    """

    values: list[Scalar]
    spread: float
    by_chance: float


class NestedFile(Comparison):
    """nested_verdict.json: the baseline against the search procedure, on the pooled answers of the outer folds."""

    schema: str
    metric: str
    baseline: CrossvalFile
    tuned: CrossvalFile
    choices: list[FoldChoice]
    agreement: dict[str, Agreement]
    judged: str


class StudyFile(TypedDict):
    """study.json: what a study is of; `space` holds Optuna's JSON of each distribution.

    `weights` has the SHA-256 of each file of weights by its path. A study without it is known by the path.
    """

    schema: str
    config: dict[str, Json]
    space: dict[str, Json]
    metric: str
    trial_epochs: int
    pruner: str
    split: str
    weights: NotRequired[dict[str, str]]
    storage: NotRequired[str]
    study: str


class Importance(TypedDict):
    """A parameter's share of importance, from 0 to 1, and its 95 % range over resamples of the trials."""

    importance: float
    low: float
    high: float


class Finalist(TypedDict):
    """A trial that was trained to its end with several seeds: the best values of the metric, one for each seed."""

    trial: int
    values: list[float]
    mean: float
    standard_deviation: float | None


class AuditedTrial(TypedDict):
    """A pruned trial that was trained to the end of its trial; `regret` is None where no trial is complete."""

    trial: int
    pruned_at: int
    value_then: float | None
    value_at_end: float
    regret: float | None


class BestTrial(MetricsFile):
    """The best trial of a study, with the figures of its full training."""

    trial: int
    params: dict[str, Json]
    value: float | None


class SearchFinals(TypedDict, total=False):
    """The outcome of a study beyond its trials; left out where another driver trains the best trial."""

    audit: list[AuditedTrial] | None
    finalists: list[Finalist]
    best: BestTrial
    verdict: VerdictFile | None
    importances: dict[str, Importance] | None
    never_acted: list[str]


class SearchResult(SearchFinals):
    """The output of `search`: the rows of trials.csv, the bytes that the study takes on disk, and its outcome."""

    schema: str
    metric: str
    trials: list[dict[str, Json]]
    disk_bytes: int


class SplitCounts(TypedDict):
    """A number for each split."""

    train: int
    validation: int
    test: int


class SplitResult(TypedDict):
    """The output of `data split`: images of each class in each split, and groups."""

    schema: str
    fingerprint: str
    images: dict[str, SplitCounts]
    groups: SplitCounts
    left_out: int
    leaked: float


class UnreadableFile(TypedDict):
    """A file that cannot be read, and the reason."""

    path: str
    reason: str


class TwinPair(TypedDict):
    """Two near-duplicates; `kind` says how they are alike."""

    first: str
    second: str
    similarity: float
    kind: TwinKind


class TwinGroup(TypedDict):
    """Images that are near-duplicates of each other."""

    images: list[str]
    classes: list[str]
    least_similarity: float
    pairs: list[TwinPair]


class NearestNeighbour(TypedDict):
    """The accuracy of naming the class of the nearest training thumbnail; None where it means nothing."""

    all: float | None
    leaked: float | None
    clean: float | None


class Leak(TypedDict):
    """How much of a test split is known from training."""

    split: str
    test_images: int
    leaked: float | None
    nearest_neighbour_accuracy: NearestNeighbour


class AuditFile(TypedDict):
    """audit.json: what is in a folder of images."""

    schema: str
    folder: str
    similarity: float
    images: int
    classes: dict[str, int]
    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, int]
    changed: dict[str, list[str]]
    coloured: list[str]
    blank: dict[str, list[str]]
    unreadable: list[UnreadableFile]
    masks: int
    other_files: dict[str, int]
    copies: list[list[str]]
    groups: list[TwinGroup]
    conflicts: list[list[str]]
    images_with_a_twin: int
    leak: Leak


class CalibrationFigures(TypedDict):
    """How well probabilities are calibrated; lower is better."""

    brier: float | None
    log_loss: float
    calibration_error: float | None


class BeforeAfter(TypedDict):
    """Calibration at temperature 1, and at the fitted temperature."""

    before: CalibrationFigures
    after: CalibrationFigures


class Calibration(TypedDict):
    """The calibration on both splits; the temperature was fitted on the first."""

    validation: BeforeAfter
    test: BeforeAfter


class ThresholdFigure(TypedDict):
    """Sensitivity or specificity at a threshold, on so many images, with its 95 % interval."""

    value: float | None
    images: int
    interval: Interval | None


class ThresholdFigures(TypedDict):
    """Both figures at a threshold."""

    sensitivity: ThresholdFigure
    specificity: ThresholdFigure


class SensitivityClaim(TypedDict):
    """The sensitivity that new cases reach with 95 % confidence, from the malignant cases of the test split.

    It supports the sensitivity that was asked for where `at_least` reaches it, which takes `needed` cases or more.
    """

    cases: int
    missed: int
    at_least: float
    supported: bool
    needed: int
    sentence: str


# `class` is a keyword of Python, so these keys need the functional form.
PointFields = TypedDict("PointFields", {"class": str})


class OperatingPointEntry(PointFields):
    """The threshold of the class that is the disease, and the validation cases that it comes from.

    A certificate adds the figures on the test split, and the claim that these support.
    """

    sensitivity: float
    threshold: float
    cases: int
    missed: int
    sentence: str
    test: NotRequired[ThresholdFigures]
    claim: NotRequired[SensitivityClaim]


class GuardEntry(TypedDict):
    """One score of the input guard."""

    name: str
    limit: float
    warning: str
    false_alarms: float


class GuardResult(TypedDict):
    """The guard's scores, and the share of images that it warns of, by kind of image."""

    scores: list[GuardEntry]
    test: dict[str, float]


class Matrices(TypedDict):
    """The confusion matrices on the test split."""

    pytorch: Matrix
    onnxruntime: Matrix


class FigurePair(TypedDict):
    """A figure of the float32 network, and of the smaller form."""

    float32: float
    candidate: float


class GateEntry(TypedDict):
    """What a smaller form of a network loses on the validation split."""

    passed: bool
    reasons: list[str]
    images: int
    accuracy: FigurePair
    sensitivity: FigurePair | None
    agreement: float
    answers_changed: int


class ModelFigures(TypedDict):
    """The verification of one model file; keys that are not required are of float32, or of int8 and float16 alone."""

    passed: bool
    reasons: list[str]
    images: int
    max_error: NotRequired[float | None]
    tolerance: NotRequired[float | None]
    pytorch_float32_error: NotRequired[float | None]
    float32_step_error: NotRequired[float | None]
    answers_changed: NotRequired[int]
    smallest_margin: NotRequired[float | None]
    median_margin: NotRequired[float | None]
    errors: NotRequired[dict[str, float | None]]
    changed: NotRequired[dict[str, int] | list[dict[str, str]]]
    compared: NotRequired[dict[str, int]]
    probe_error: NotRequired[float | None]
    probe_tolerance: NotRequired[float | None]
    probe_float32_error: NotRequired[float | None]
    resized_differently: NotRequired[int]
    confusion_matrix: NotRequired[Matrices]
    precision: NotRequired[str]
    agreement: NotRequired[float]
    test: NotRequired[TestSummary]
    operating_point: NotRequired[OperatingPointEntry]
    gate: NotRequired[GateEntry]
    kept_in_float32: NotRequired[list[str]]
    bytes: NotRequired[int]
    guard: NotRequired[GuardResult]
    latency_ms: NotRequired[dict[str, float]]
    model_sha256: NotRequired[str]


class ModelCertificate(ModelFigures):
    """The certificate of one model file; the one inside the model lacks `model_sha256`."""

    graph_sha256: str
    weights_sha256: str


class AveragedEntry(TypedDict):
    """The models whose probabilities an export averages: their temperatures, and what the average costs beside one."""

    models: int
    temperatures: list[float]
    bytes: dict[str, int]
    latency_ms: dict[str, float]


class Evidence(TypedDict):
    """The part of a certificate that all models of an export share, and that each holds inside."""

    source_sha256: str
    options: dict[str, Json]
    split: str
    test_images_sha256: str
    predictions_sha256: str
    probe_logits: list[list[float]]
    test: TestSummary
    temperature: float
    calibration: Calibration
    guard: GuardResult
    versions: dict[str, str]
    machine: dict[str, Json]
    operating_point: NotRequired[OperatingPointEntry]
    averaged: NotRequired[AveragedEntry]


class VerificationFile(Evidence):
    """verification.json: the certificate of an export; errors, hash and counts at its top are those of model.onnx."""

    schema: str
    passed: bool
    reasons: list[str]
    images: int
    max_error: float | None
    tolerance: float | None
    answers_changed: int
    model_sha256: str
    models: dict[str, ModelCertificate]
    files: dict[str, str]


PredictionClass = TypedDict("PredictionClass", {"class": NotRequired[str]})


class PredictionEntry(PredictionClass):
    """One file's answer in the output of `predict`: the class and its probabilities, or the error.

    The flag of the operating point is `malignant` for the class of that name, and `positive` for any other.
    """

    path: str
    probabilities: NotRequired[dict[str, float]]
    malignant: NotRequired[bool]
    positive: NotRequired[bool]
    warning: NotRequired[str]
    error: NotRequired[str]


class RunPlaces(TypedDict):
    """The folders of a whole run."""

    data: str
    baseline: str
    study: str
    export: str


class RunResult(TypedDict):
    """The output of `run`: the result of each step, a few predictions, and the folders."""

    schema: str
    baseline: MetricsFile
    search: SearchResult
    export: VerificationFile
    predictions: list[PredictionEntry]
    places: RunPlaces


# Each document and its name and version; a change that a reader must know of gets a new version.
SCHEMAS: Mapping[type, str] = {
    MetricsFile: "busi-tune.metrics/2",
    SeedsFile: "busi-tune.seeds/1",
    RunIdentityFile: "busi-tune.config/1",
    DataFile: "busi-tune.data/1",
    StateFile: "busi-tune.state/1",
    VerdictFile: "busi-tune.verdict/1",
    CompareResult: "busi-tune.compare/1",
    CrossvalIdentityFile: "busi-tune.crossval/1",
    CrossvalFile: "busi-tune.pooled/1",
    CrossvalResult: "busi-tune.crossval-result/1",
    NestedIdentityFile: "busi-tune.nested/1",
    NestedFile: "busi-tune.nested-verdict/1",
    StudyFile: "busi-tune.study/1",
    SearchResult: "busi-tune.search/2",
    SplitResult: "busi-tune.split/1",
    AuditFile: "busi-tune.audit/1",
    VerificationFile: "busi-tune.verification/2",
    RunResult: "busi-tune.run/2",
}


def check(value: Mapping[str, object], kind: type[T], source: str) -> T:
    """`value` itself, once it is known to be of `kind`; keys beside those of `kind` stay.

    Raises:
        FileError: it is of another schema or version, lacks a key, or has a value of another type; names `source`.
    """
    name, _, version = SCHEMAS[kind].partition("/")
    found = value.get("schema")
    if found != SCHEMAS[kind]:
        known_name = isinstance(found, str) and found.partition("/")[0] == name
        wrong = f"has version {found}" if known_name else f"has the schema {found!r}"
        raise FileError(f"{source} {wrong}, and this busi-tune reads {name} of version {version}; start anew.")
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise FileError(f"{source} is damaged ({error}); restore it or start anew.") from error
    return cast("T", value)


def write(path: Path, document: Mapping[str, object]) -> None:
    """Write a document with the SHA-256 of its content, by which `read` notices a later change."""
    files.write_json(path, {**document, CONTENT: _content(document)})


def read(path: Path, kind: type[T]) -> T:
    """Read a JSON document of `kind`; one without the SHA-256 of its content, which earlier versions wrote, as it is.

    Raises:
        FileError: see `check`; or it cannot be read, or was changed after it was written.
    """
    found = files.read_json(path)
    recorded = found.pop(CONTENT) if CONTENT in found else _content(found)
    document = check(found, kind, str(path))
    if recorded != _content(found):
        raise FileError(
            f"{path} was changed after it was written (its content has another SHA-256); restore it or start anew."
        )
    return document


def _content(document: Mapping[str, object]) -> str:
    return files.sha256_bytes(files.json_text(document).encode())
