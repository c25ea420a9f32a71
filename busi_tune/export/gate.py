"""The gate for a smaller form of a network, judged on the validation split. The test split is not used."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np

from busi_tune.errors import BusiTuneError
from busi_tune.evaluation.metrics import Labels, accuracy, class_scores, confusion_matrix
from busi_tune.export.quantisation import Logits, quantiser
from busi_tune.images import Pixels
from busi_tune.names import positive_class
from busi_tune.results import GateEntry

MAX_DROP = 0.01
AGREEMENT = 0.98
ROUNDS = 20
WARM_UP = 3


class GateError(BusiTuneError):
    """A smaller form of a network loses more than is allowed."""


@dataclass(frozen=True)
class Pair:
    """A metric of the float32 network and of the candidate that may replace it."""

    float32: float
    candidate: float


@dataclass(frozen=True)
class Gate:
    """The losses of a smaller form of a network on the validation split. `sensitivity` is that for the disease."""

    passed: bool
    reasons: list[str]
    images: int
    accuracy: Pair
    sensitivity: Pair | None
    agreement: float
    answers_changed: int

    def entry(self) -> GateEntry:
        """The gate in the form of the certificate."""
        return cast("GateEntry", asdict(self))


def compare(
    float32: Logits,
    candidate: Logits,
    labels: Labels,
    classes: Sequence[str],
    max_drop: float = MAX_DROP,
    *,
    positive: str | None = None,
) -> Gate:
    """Compare the logits (n, classes) of a candidate with those of the float32 network.

    The candidate passes if accuracy and sensitivity fall by at most `max_drop`, and at least 98 % of the predictions
    agree. The sensitivity is that for the disease: the class `positive`, by default malignant.
    """
    answers = float32.argmax(axis=1), candidate.argmax(axis=1)
    matrices = np.stack([confusion_matrix(labels, answer, len(classes)) for answer in answers])
    figures = {"accuracy": Pair(*accuracy(matrices).tolist())}
    disease = positive_class(classes, positive)
    if disease is not None:
        place = list(classes).index(disease)
        figures["sensitivity"] = Pair(*class_scores(matrices)[1][:, place].tolist())
    changed = int((answers[0] != answers[1]).sum())
    agreement = 1 - changed / len(labels)
    reasons = [
        f"its {name} falls by {pair.float32 - pair.candidate:.1%} from {pair.float32:.1%}, more than {max_drop:.1%}"
        for name, pair in figures.items()
        # A drop equal to the limit passes in spite of rounding.
        if pair.float32 - pair.candidate > max_drop + 1e-9
    ]
    if not np.isfinite(candidate).all():
        reasons.append("its logits are not finite")
    if agreement < AGREEMENT:
        reasons.append(f"only {agreement:.1%} of its predictions equal those of float32, less than {AGREEMENT:.0%}")
    return Gate(
        passed=not reasons,
        reasons=reasons,
        images=len(labels),
        accuracy=figures["accuracy"],
        sensitivity=figures.get("sensitivity"),
        agreement=agreement,
        answers_changed=changed,
    )


def failure(form: str, gate: Gate) -> str:
    """The sentence for a form, such as "int8", that did not pass."""
    half = ", not even with half of its layers in float32" if form == "int8" else ""
    return (
        f"The {form} model does not pass its gate on {gate.images} validation images{half}: {'; '.join(gate.reasons)}; "
        "allow more with --max-drop, or use the float32 model."
    )


def through_gate(network: bytes, calibration: Pixels, judge: Callable[[bytes], Gate]) -> tuple[bytes, Gate, list[str]]:
    """The network in int8, with as many of its most sensitive layers in float32 as it needs to pass `judge`.

    Returns the network, its gate, and the names of the layers in float32, without the last layer, which always is.

    Raises:
        GateError: the network does not pass, even with half of its layers in float32.
    """
    with quantiser(network, calibration) as maker:
        candidate, kept = maker.int8(), list[str]()
        first = gate = judge(candidate)
        ranking = [] if gate.passed else maker.ranking()
        count = 1
        while not gate.passed and count <= len(ranking) // 2:
            kept = [name for stretch in ranking[:count] for name in stretch]
            candidate = maker.int8(keep=kept)
            gate = judge(candidate)
            count *= 2
    if not gate.passed:
        raise GateError(failure("int8", first))
    return candidate, gate, kept


def latency(models: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median milliseconds of a call of each of `models`. Each round calls every model once."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARM_UP + rounds):
        for name, call in models.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
