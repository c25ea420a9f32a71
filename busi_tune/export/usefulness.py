"""Warnings about a network that passes verification but is useless."""

from collections.abc import Sequence

from busi_tune.export.calibration import Logits, ran_into_bound
from busi_tune.export.parity import Reference

# A larger tolerance means logits so large that every probability is 0 or 1.
LARGEST_TOLERANCE = 0.1


def warnings_about(temperature: float, reference: Reference, classes: Sequence[str]) -> list[str]:
    """Sentences that say why a network is useless, from its float64 logits of the test images; usually none."""
    logits, tolerance = reference.logits, reference.tolerance
    found = []
    if ran_into_bound(temperature):
        found.append(
            f"The temperature ran into its bound of {temperature:.3g}: no temperature makes the probabilities fit the "
            "validation images."
        )
    if _constant(logits, tolerance):
        found.append(
            "The network's logits do not depend on the image: they differ only by rounding between the test images."
        )
    elif len(logits) > 1 and (answers := set(logits.argmax(axis=1).tolist())) and len(answers) == 1:
        found.append(f"The network predicts {classes[answers.pop()]} for all {len(logits)} test images.")
    if not tolerance <= LARGEST_TOLERANCE:
        found.append(
            "The network's logits are so large that rounding moves them by more than "
            f"{LARGEST_TOLERANCE}: its probabilities are 0 or 1, or no numbers at all."
        )
    return found


def _constant(logits: Logits, tolerance: float) -> bool:
    """Whether the logits (n, classes) of all images are equal within the tolerance."""
    return len(logits) > 1 and bool((logits.max(axis=0) - logits.min(axis=0)).max() <= tolerance)
