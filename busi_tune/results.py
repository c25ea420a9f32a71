"""The types of all results: the JSON files that the tool writes, and the output of `--json`.

Every document names its schema in the key `schema`, as `busi-tune.NAME/VERSION`. Readers accept keys that they do not
know, and refuse a version that they do not know. The JSON Schemas in docs/reference/schemas are generated from these
types. The files of runs and studies also hold the SHA-256 of their content, which reveals a later change.
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
ReportKind = Literal["run", "study", "cross-validation", "nested search", "evaluation", "export"]
MapMethod = Literal["cam", "grad-cam", "none"]
T = TypeVar("T")

# The files of result folders.
METRICS = "metrics.json"
SEEDS = "seeds.json"
IDENTITY = "config.json"
SOURCE = "data.json"
OPTIONS = "options.json"
SPACE = "space.toml"
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
OUTCOME = "outcome.json"
REPORT = "report.json"
REPORT_PAGE = "report.html"
LABELS = "labels.json"
CURVES = "learning_curves.png"
CONFUSION = "confusion_matrix.png"
EVALUATION = "evaluation.json"
RISK_COVERAGE = "risk_coverage.png"
RELIABILITY = "reliability.png"
# The key of a document's own SHA-256.
CONTENT = "sha256"


class ClassMetrics(TypedDict):
    """One class against the others; None if a metric is not defined."""

    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None
    average_precision: float | None
    images: int


class BinaryMetrics(TypedDict):
    """The disease against the rest, or against benign alone, then with `accuracy`."""

    accuracy: NotRequired[float | None]
    sensitivity: float | None
    specificity: float | None
    roc_auc: float | None
    average_precision: float | None


class RiskCoveragePoint(TypedDict):
    """The share of images with at least this confidence, and the share of wrong predictions among them."""

    confidence: float
    coverage: float
    error: float
    images: int


class Summary(TypedDict):
    """All metrics of a split of at least one image; None if a metric is not defined.

    If the disease has another name than malignant, `positive` is this name, and keys contain "positive" instead of
    "malignant". `aurc` is the area under the risk-coverage curve, and `risk_coverage` has points of the curve. Earlier
    versions wrote neither.
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
    aurc: NotRequired[float]
    per_class: dict[str, ClassMetrics]
    malignant_vs_rest: NotRequired[BinaryMetrics]
    benign_vs_malignant: NotRequired[BinaryMetrics]
    positive_vs_rest: NotRequired[BinaryMetrics]
    benign_vs_positive: NotRequired[BinaryMetrics]
    positive: NotRequired[str]
    images: int
    confusion_matrix: Matrix
    risk_coverage: NotRequired[list[RiskCoveragePoint]]


class Intervals(TypedDict, total=False):
    """95 % intervals, [low, high], by the names of their metrics. Metrics without an interval are left out."""

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
    aurc: Interval
    per_class: dict[str, dict[str, Interval]]
    malignant_vs_rest: dict[str, Interval]
    benign_vs_malignant: dict[str, Interval]
    positive_vs_rest: dict[str, Interval]
    benign_vs_positive: dict[str, Interval]


class Spread(TypedDict):
    """The intervals of a summary over groups of images, and the reasons for missing intervals by dotted metric name."""

    groups: int
    intervals: Intervals
    without_interval: dict[str, str]


class TestSummary(Summary, Spread):
    """All metrics of the test split, with intervals."""


class TestFigures(TypedDict):
    """The metrics of the test split. If some images have a twin in training, also those of these and of the others."""

    test: TestSummary
    test_leaked: NotRequired[TestSummary]
    test_clean: NotRequired[TestSummary]


class MetricsFile(TestFigures):
    """metrics.json: the figures of a finished run. The checkpoint was chosen by the images of `validation`.

    `files` has the SHA-256 of each file that belongs to these figures.
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
    """One test metric over runs that differ only in their seed."""

    mean: float
    standard_deviation: float
    lowest: float
    highest: float


class SeedsFile(TypedDict):
    """seeds.json: the effect of the seed on each test metric."""

    schema: str
    seeds: list[int]
    metrics: dict[str, SeedMetric]


class FoldFigures(TypedDict):
    """One fold of a cross-validation: the path of its run below the folder, and the figures on its own test part."""

    fold: int
    run: str
    best_epoch: int
    epochs_run: int
    test: TestSummary


class CrossvalIdentityFile(TypedDict):
    """crossval.json: the identity of a cross-validation."""

    schema: str
    config: dict[str, Json]
    weights_sha256: str
    folds: int
    folds_sha256: str


class CrossvalFile(TypedDict):
    """pooled.json: the figures of all predictions together, of each fold, and their spread over the folds."""

    schema: str
    folds: list[FoldFigures]
    spread: dict[str, SeedMetric]
    pooled: TestSummary


class CrossvalResult(CrossvalFile):
    """The output of `crossval`: pooled.json, and with `--repeats` the pooled figures' spread over partitions."""

    repeats: dict[str, SeedMetric]


class BaselineResult(MetricsFile):
    """The output of `baseline`: metrics.json, and with `--seeds` the comparison of the seeds."""

    seeds: NotRequired[SeedsFile]


class RunIdentityFile(TypedDict):
    """config.json: the identity of a run, and the `version` of busi-tune that wrote it."""

    schema: str
    version: NotRequired[str]
    config: dict[str, Json]
    classes: list[str]
    split: str
    weights_sha256: str
    environment: dict[str, Json]


class DataFile(TypedDict):
    """data.json: the folder of the images when the run was last opened."""

    schema: str
    folder: str


class OptionsFile(TypedDict):
    """options.json: options of the last command on a folder that are in no other file of the folder.

    Options with their default values are left out. The URL of a database is left out, because it may hold a password.
    """

    schema: str
    options: dict[str, Json]


class EpochRecord(TypedDict):
    """One epoch, like a row of history.csv."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    learning_rate: float
    seconds: float
    images_per_second: float


class StoppingState(TypedDict):
    """The best epoch so far, and the epoch with the lowest validation loss, from which the patience counts."""

    patience: int
    best_epoch: int
    best_accuracy: float
    best_accuracy_loss: float
    tied_epochs: list[int]
    lowest_loss_epoch: int
    lowest_loss: float


class CheckpointEntry(TypedDict):
    """The name and the SHA-256 of a checkpoint file."""

    file: str
    sha256: str


class TrainingValues(TypedDict):
    """The values that training carries from epoch to epoch, except tensors. `stop_reason` is "" until it ends."""

    history: list[EpochRecord]
    scheduler: dict[str, Json]
    learning_rate: float
    watcher: StoppingState
    stop_reason: str


class StateFile(TrainingValues):
    """state.json: everything that a run needs to continue, except the tensors in its checkpoints.

    The checkpoints are "last" and "best". After early stopping, only "best" is left.
    """

    schema: str
    checkpoints: dict[str, CheckpointEntry]


class Difference(TypedDict):
    """A metric of two models on the same images: `difference` is tuned minus baseline, with its 95 % interval."""

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
    """The output of `compare`: two folders. A difference is the second minus the first."""

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
    """nested.json: the identity of a nested search; the study of each fold has the rest."""

    schema: str
    config: dict[str, Json]
    folds: int
    folds_sha256: str


class FoldChoice(TypedDict):
    """The choice of one outer fold's study, its validation value, and its figures on the fold itself."""

    fold: int
    trial: int
    trials: int
    params: dict[str, Json]
    value: float | None
    baseline_accuracy: float
    tuned_accuracy: float


class Agreement(TypedDict):
    """The spread of the folds' choices of a parameter, as a share of its range, and the spread of random choices.

    For a parameter without an order, it is the share of pairs of folds that differ.
    """

    values: list[Scalar]
    spread: float
    by_chance: float


class NestedFile(Comparison):
    """nested_verdict.json: the baseline against the search procedure, on the pooled predictions of the outer folds."""

    schema: str
    metric: str
    baseline: CrossvalFile
    tuned: CrossvalFile
    choices: list[FoldChoice]
    agreement: dict[str, Agreement]
    judged: str


class StudyFile(TypedDict):
    """study.json: the identity of a study; `space` has Optuna's JSON of each distribution.

    `weights` has the SHA-256 of each file of weights by its path. A study without this key is identified by the paths.
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
    """A pruned trial that was continued to the full number of epochs; `regret` is None if no trial is complete."""

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
    """The outcome of a study beyond its trials. A part is left out if another driver trains the best trial."""

    audit: list[AuditedTrial] | None
    finalists: list[Finalist]
    best: BestTrial
    verdict: VerdictFile | None
    importances: dict[str, Importance] | None
    never_acted: list[str]


class OutcomeFile(SearchFinals):
    """outcome.json: the results of a finished study beyond its trials."""

    schema: str


class SearchResult(SearchFinals):
    """The output of `search`: the rows of trials.csv, the bytes of the study on disk, and its outcome."""

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
    """The accuracy of predicting the class of the nearest training thumbnail; None if it means nothing."""

    all: float | None
    leaked: float | None
    clean: float | None


class Leak(TypedDict):
    """The share of a test split that is known from training."""

    split: str
    test_images: int
    leaked: float | None
    nearest_neighbour_accuracy: NearestNeighbour


class AuditFile(TypedDict):
    """audit.json: the audit of a folder of images."""

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
    """Sensitivity or specificity at a threshold, with its 95 % interval and the number of images."""

    value: float | None
    images: int
    interval: Interval | None


class ThresholdFigures(TypedDict):
    """Both figures at a threshold."""

    sensitivity: ThresholdFigure
    specificity: ThresholdFigure


class SensitivityClaim(TypedDict):
    """The sensitivity for new cases with 95 % confidence, from the cases of the disease in the test split.

    `at_least` is this sensitivity. It supports the requested sensitivity if it is not lower. This needs at least
    `needed` cases.
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
    """The threshold for the class of the disease, and the validation cases from which it comes.

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
    """The losses of a smaller form of a network on the validation split."""

    passed: bool
    reasons: list[str]
    images: int
    accuracy: FigurePair
    sensitivity: FigurePair | None
    agreement: float
    answers_changed: int


class MapFigures(TypedDict):
    """The verification of a model's class activation maps, with the same keys as that of its logits.

    `shape` is (classes, h, w). `mean_error` is the largest difference of a map's mean over h and w from the logit.
    """

    shape: list[int]
    max_error: float | None
    tolerance: float | None
    pytorch_float32_error: float | None
    float32_step_error: float | None
    errors: dict[str, float | None]
    mean_error: float | None
    probe_error: float | None
    probe_tolerance: float | None
    probe_float32_error: float | None


class ModelFigures(TypedDict):
    """The verification of one model file. Keys that are not required are for float32 only, or for int8 and float16."""

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
    cam: NotRequired[MapFigures]
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
    """The certificate of one model file; the copy inside the model lacks `model_sha256` and `bytes`.

    `weights_sha256` covers the graph's tensors. `graph_sha256` covers everything else in the file, except the
    certificate inside it.
    """

    graph_sha256: str
    weights_sha256: str


class AveragedEntry(TypedDict):
    """The models whose probabilities an export averages: their temperatures, and the cost compared with one model."""

    models: int
    temperatures: list[float]
    bytes: dict[str, int]
    latency_ms: dict[str, float]


class Evidence(TypedDict):
    """The part of a certificate that all models of an export share. Each model contains a copy.

    `validation_risk_coverage` is for the calibrated probabilities of the validation images; earlier versions lack it.
    `warnings` are the reasons why the network is useless, even if its export is correct; there are usually none.
    `probe_cam` has PyTorch's class activation maps of the last probes, if the export has maps (`--cam`).
    `seen_images_sha256` is the hash of the list `seen_images`; earlier versions lack it.
    """

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
    warnings: list[str]
    operating_point: NotRequired[OperatingPointEntry]
    validation_risk_coverage: NotRequired[list[RiskCoveragePoint]]
    averaged: NotRequired[AveragedEntry]
    probe_cam: NotRequired[list[list[list[list[float]]]]]
    seen_images_sha256: NotRequired[str]


class VerificationFile(Evidence):
    """verification.json: the certificate of an export. Errors, hash and counts at the top are those of model.onnx.

    `seen_images` has the first 16 digits of the SHA-256 of all images in the training folder except the test images,
    sorted. Earlier versions lack it.
    `signed_by` is the Ed25519 public key, 32 bytes in base64, of the signature in verification.json.sig.
    """

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
    seen_images: NotRequired[list[str]]
    signed_by: NotRequired[str]


class ModelLabels(TypedDict):
    """The values to interpret one model's outputs: the flagged class, its threshold, and the guard's limits.

    Without an operating point, `positive` and `threshold` are left out, because some JSON readers do not support null.
    """

    positive: NotRequired[str]
    threshold: NotRequired[float]
    guard: list[GuardEntry]


class LabelsFile(TypedDict):
    """labels.json: the values that a program needs to run an exported model, for each model file.

    `image_size` is the side of the network's input in pixels. `mean` and `std` are for RGB channels from 0 to 1.
    """

    schema: str
    classes: list[str]
    image_size: int
    mean: list[float]
    std: list[float]
    models: dict[str, ModelLabels]


# These keys include `class`, too.
LeftOutClass = TypedDict("LeftOutClass", {"class": str})


class LeftOutImage(LeftOutClass):
    """An image that was left out, and the reason. If it has a twin in the training data, also this twin."""

    path: str
    reason: str
    twin: NotRequired[str]
    twin_class: NotRequired[str]
    similarity: NotRequired[float]


class TransferDifference(TypedDict):
    """A metric on the internal test images and on the external images; `difference` is external minus internal."""

    internal: float
    external: float
    difference: float
    interval: Interval | None


class TransferCalibration(TypedDict):
    """The calibration on the external images: mean confidence, accuracy, and the temperature that would fit them.

    The temperature is in addition to the model's own. It is 1 if the model's probabilities are already calibrated.
    """

    confidence: float
    accuracy: float
    temperature: float
    internal: CalibrationFigures
    external: CalibrationFigures


class ThresholdThere(TypedDict):
    """A threshold, and its figures on the external images."""

    threshold: float
    figures: ThresholdFigures


class TransferPoint(PointFields):
    """The stored threshold on the external images, and the threshold that these images would have set.

    `needed` is None if they have no image of the disease. Its figures are for the images that set it.
    """

    sensitivity: float
    stored: ThresholdThere
    needed: ThresholdThere | None


class TransferGuard(TypedDict):
    """The share of images that the input guard warns of: internal test images, external images, and these by score."""

    internal: float
    external: float
    scores: dict[str, float]


class TransferConfidence(TypedDict):
    """The confidence that halves the error of the validation images, on these and on the external images.

    `external` is None if no external image reaches this confidence.
    """

    confidence: float
    validation: RiskCoveragePoint
    external: RiskCoveragePoint | None


class EvaluationFile(TypedDict):
    """evaluation.json: the evaluation of a finished run or an export on labelled external images.

    `images` has the number of evaluated images of each class of the model, and `labels` the class of each external
    label. `training_data` is the folder that was searched for twins of external images, or None if it was not
    available. `twins_checked` is a sentence on this comparison.
    """

    schema: str
    model: str
    kind: Literal["run", "export"]
    model_sha256: str
    data: str
    labels: dict[str, str]
    images: dict[str, int]
    absent_classes: list[str]
    unreadable: list[UnreadableFile]
    left_out: list[LeftOutImage]
    similarity: float
    training_data: str | None
    twins_checked: str
    external: TestSummary
    internal: TestSummary
    differences: dict[str, TransferDifference]
    calibration: TransferCalibration
    operating_point: NotRequired[TransferPoint]
    guard: NotRequired[TransferGuard]
    min_confidence: NotRequired[TransferConfidence]
    files: dict[str, str]


class PredictionEntry(TypedDict):
    """The prediction for one file in the output of `predict`: the predicted class and the probabilities, or the error.

    The flag of the operating point is `malignant` for the class of that name, and `positive` for any other class.
    With `--min-confidence`, `refer` is true if the confidence (the largest probability) is lower. With `--explain`,
    `overlay` is the file that shows where the network looked.
    """

    schema: str
    path: str
    predicted: NotRequired[str]
    probabilities: NotRequired[dict[str, float]]
    malignant: NotRequired[bool]
    positive: NotRequired[bool]
    refer: NotRequired[bool]
    overlay: NotRequired[str]
    warning: NotRequired[str]
    error: NotRequired[str]


class ListEntry(TypedDict):
    """One result folder in the output of `list`. The figures are for the test images, or None if there are none yet.

    `modified` is the time of the newest file, in UTC. `next` is the command to run next.
    """

    kind: Literal["run", "study", "cross-validation", "nested search", "export"]
    path: str
    state: Literal["finished", "running", "unfinished", "damaged"]
    detail: str
    accuracy: float | None
    accuracy_interval: Interval | None
    macro_f1: float | None
    macro_f1_interval: Interval | None
    size_bytes: int
    modified: str
    next: str


class PlanStage(TypedDict):
    """Trainings of one kind on one split: their number, the epochs that are done, and the maximum that is left.

    `seconds_per_epoch` is measured, as a mean if the search varies the architecture or the sizes. `seconds` is the time
    for the epochs that are left, and `seconds_with_pruning` the time expected with the pruner of a study.
    """

    name: str
    folder: str
    images: SplitCounts
    steps_per_epoch: int
    trainings: int
    finished: int
    epochs_done: int
    epochs_left: int
    seconds_per_epoch: float
    seconds: float
    seconds_with_pruning: float
    disk_bytes: int


class PlanFile(TypedDict):
    """The output of `--dry-run`: the work of a command, and its expected cost. Nothing was written.

    Times are upper limits, without early stopping. `preparation_seconds` is the time to read and compare the images.
    `memory_bytes` is the memory of all processes that train, or None if the system does not report it. `cache_bytes` is
    the size of decoded images that the cache still lacks. `processors` is the mean number of processors in the
    measurement, or None if nothing was measured. `processor_seconds` is the time of all processors, which hardly
    depends on other load. `without_export` is true for `run`, whose export is not measured.
    """

    schema: str
    command: str
    stages: list[PlanStage]
    device: str
    precision: str
    workers: int
    preparation_seconds: float
    evaluation_seconds: float
    seconds: float
    seconds_with_pruning: float
    processor_seconds: float
    disk_bytes: int
    cache_bytes: int
    memory_bytes: int | None
    gpu_memory_bytes: int | None
    threads: int
    processors: float | None
    without_export: bool


class RunPlaces(TypedDict):
    """The folders of a whole run, and its page."""

    data: str
    baseline: str
    study: str
    export: str
    report: str


class RunResult(TypedDict):
    """The output of `run`: the result of each step, a few predictions, and the folders."""

    schema: str
    baseline: MetricsFile
    search: SearchResult
    export: VerificationFile
    predictions: list[PredictionEntry]
    places: RunPlaces


# A prediction of `predict`, also in its CSV. The first version named the predicted class "class", like the true class.
PREDICTION = "busi-tune.prediction/2"


ReportClass = TypedDict("ReportClass", {"class": str})


class ReportFigure(TypedDict):
    """A key figure of a report, with its 95 % interval."""

    name: str
    value: float | None
    interval: Interval | None


class ReportImage(ReportClass):
    """An image by its path below the data folder, and its class."""

    path: str


class NearestImage(ReportImage):
    """The training image that is most similar to another image, by their thumbnails."""

    similarity: float


class Mistake(ReportImage):
    """An image with a wrong prediction; `nearest` is None if the images are not available."""

    predicted: str
    probabilities: dict[str, float]
    nearest: NearestImage | None


class ReportMaps(TypedDict):
    """The maps of the mistakes: the method, and the height and width in cells.

    `sentence` describes the method, or states the reason why there are no maps. It is empty if there are no pictures.
    """

    method: MapMethod
    cells: list[int] | None
    sentence: str


class ReportData(TypedDict):
    """The images of a result: by class and part, by group, and those left out by reason.

    `group_sizes` has the number of groups of each size. `leaked` is the share of test images with a near-duplicate in
    training, if there is a training part.
    """

    images: dict[str, dict[str, int]]
    totals: dict[str, int]
    groups: dict[str, int]
    group_sizes: dict[str, int]
    left_out: dict[str, int]
    contradictions: list[list[ReportImage]]
    leaked: float | None


class Band(TypedDict):
    """A curve with the 95 % interval of each of its points."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


class ClassCurves(TypedDict):
    """One class against the others: sensitivity over false-positive rate, and precision over recall."""

    roc: Band
    precision_recall: Band
    share: float


class ReliabilityBin(TypedDict):
    """The predictions of similar confidence: their mean confidence, and their accuracy with its interval."""

    confidence: float
    accuracy: float
    low: float
    high: float
    images: int


class Reliability(TypedDict):
    """Confidence against accuracy at temperature 1, and at the fitted temperature if there is one."""

    before: list[ReliabilityBin]
    after: list[ReliabilityBin]
    temperature: float | None


class ReportAnswers(TypedDict):
    """The results on images not used for training; `coverage` has the error of the most confident predictions.

    `grouped` is true if the intervals consider the groups of near-duplicates. The files of an export do not name them.
    """

    images: int
    grouped: bool
    shares: list[list[float]]
    curves: dict[str, ClassCurves]
    reliability: Reliability
    coverage: Band
    mistakes: list[Mistake]
    maps: NotRequired[ReportMaps]
    wrong: int


class ReportTrial(TypedDict):
    """One trial: its row of trials.csv, and the metric after each epoch; `state` is RUNNING without a row."""

    number: int
    state: str
    value: float | None
    params: dict[str, Json]
    epochs_run: int
    best_epoch: int | None
    seconds: float | None
    stop_reason: str
    curve: list[float]


class Saving(TypedDict):
    """The maximum that pruning can have saved: the epochs that pruned trials lack, and their time."""

    epochs_run: int
    epochs_saved: int
    seconds_run: float
    seconds_saved: float


class ReportStudy(TypedDict):
    """The trials of a study, and its outcome; `leading` has the best value after each ended trial."""

    identity: StudyFile
    lower_is_better: bool
    states: dict[str, int]
    trials: list[ReportTrial]
    leading: list[float | None]
    best: int | None
    saving: Saving
    outcome: OutcomeFile | None
    verdict: VerdictFile | None


class ReportFile(TypedDict):
    """report.json: every number of report.html. Parts that a result does not have are left out."""

    schema: str
    kind: ReportKind
    folder: str
    finished: bool
    state: str
    verdict: str
    figures: list[ReportFigure]
    sections: list[str]
    commands: list[str]
    versions: dict[str, str]
    data: NotRequired[ReportData]
    identity: NotRequired[RunIdentityFile]
    metrics: NotRequired[MetricsFile]
    history: NotRequired[list[EpochRecord]]
    folds: NotRequired[dict[str, list[EpochRecord]]]
    crossval: NotRequired[CrossvalIdentityFile]
    pooled: NotRequired[CrossvalFile]
    answers: NotRequired[ReportAnswers]
    study: NotRequired[ReportStudy]
    export: NotRequired[VerificationFile]
    outer: NotRequired[NestedIdentityFile]
    nested: NotRequired[NestedFile]
    evaluation: NotRequired[EvaluationFile]


# The name and version of each document. A change that readers must know of needs a new version.
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
    LabelsFile: "busi-tune.labels/2",
    VerificationFile: "busi-tune.verification/3",
    PredictionEntry: PREDICTION,
    RunResult: "busi-tune.run/2",
    EvaluationFile: "busi-tune.evaluation/1",
    OutcomeFile: "busi-tune.outcome/1",
    ReportFile: "busi-tune.report/1",
    PlanFile: "busi-tune.plan/1",
    OptionsFile: "busi-tune.options/1",
}


def check(value: Mapping[str, object], kind: type[T], source: str) -> T:
    """Check that `value` is a document of `kind`, and return it. It keeps additional keys.

    Raises:
        FileError: it has another schema or version, lacks a key, or has a value of another type. The message names
            `source`.
    """
    name, _, version = SCHEMAS[kind].partition("/")
    found = value.get("schema")
    if found != SCHEMAS[kind]:
        known_name = isinstance(found, str) and found.partition("/")[0] == name
        wrong = f"has version {found}" if known_name else f"has the schema {found!r}"
        raise FileError(f"{source} {wrong}, and this busi-tune reads {name} of version {version}; start over.")
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise FileError(f"{source} is damaged ({error}); restore it or start over.") from error
    return cast("T", value)


def write(path: Path, document: Mapping[str, object]) -> None:
    """Write a document with the SHA-256 of its content, so that `read` detects a later change."""
    files.write_text(path, text(document))


def text(document: Mapping[str, object]) -> str:
    """The text that `write` writes."""
    return files.json_text({**document, CONTENT: _content(document)})


def read(path: Path, kind: type[T]) -> T:
    """Read a JSON document of `kind`. If it has no SHA-256 of its content, as in earlier versions, this is not checked.

    Raises:
        FileError: see `check`; or the file cannot be read, or was changed after it was written.
    """
    found = files.read_json(path)
    recorded = found.pop(CONTENT) if CONTENT in found else _content(found)
    document = check(found, kind, str(path))
    if recorded != _content(found):
        raise FileError(
            f"{path} was changed after it was written (its content has another SHA-256); restore it or start over."
        )
    return document


def _content(document: Mapping[str, object]) -> str:
    return files.sha256_bytes(files.json_text(document).encode())
