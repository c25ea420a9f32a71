"""How often a promised sensitivity is not reached if the model was chosen on the images that set its threshold.

    python tests/benchmarks/sensitivity_selection.py [--studies 4000]

Equally good models predict the validation images. The model with the lowest loss is kept, and its threshold is set on
the same images. Models share half of the difficulty of an image. "Validation" is the promise that the threshold reaches
the requested sensitivity. It ignores that these cases chose the model, and needs enough of them. "Test" is the
statement of an export: the same threshold, with a claim from as many test cases, which chose nothing.
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from busi_tune.export.calibration import CONFIDENCE, allowed_misses, claim

Floats = NDArray[np.float64]
ALIKE = 0.5
# Malignant scores are normal around SIGNAL, other scores around -SIGNAL. BUSI has 2.8 others for each malignant one.
SIGNAL = 1.0
OTHERS = 2.8
CHOICES = (1, 20, 200)
SENSITIVITIES = (0.8, 0.9, 0.95)


def chosen_scores(generator: np.random.Generator, cases: int, choices: int) -> tuple[Floats, Floats]:
    """The chosen model's scores of malignant images: sorted validation scores (cases,), and test scores (cases,)."""
    images = cases + round(OTHERS * cases)
    signs = np.where(np.arange(images) < cases, 1, -1)
    common = np.sqrt(ALIKE) * generator.standard_normal(images)
    margins = SIGNAL + common + np.sqrt(1 - ALIKE) * generator.standard_normal((choices, images))
    chosen = margins[np.logaddexp(0, -2 * SIGNAL * margins).mean(axis=1).argmin()]
    return np.sort((signs * chosen)[:cases]), SIGNAL + generator.standard_normal(cases)


def study(number: int, cases: int, choices: int) -> dict[float, tuple[bool, bool, bool]]:
    """For each sensitivity: whether the promise from validation is broken, whether the claim from test images is, and
    whether the claim supports the sensitivity.
    """
    validation, test = chosen_scores(np.random.default_rng((17, number)), cases, choices)
    found = {}
    for sensitivity in SENSITIVITIES:
        threshold = validation[allowed_misses(cases, sensitivity)]
        true = float(stats.norm.sf(threshold - SIGNAL))
        said = claim(cases, int((test < threshold).sum()), sensitivity)
        found[sensitivity] = true < sensitivity, true < said["at_least"], said["supported"]
    return found


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000)
    studies = parser.parse_args().studies
    print("| cases | choices | sensitivity | false, validation | false, test | test supports it |")
    print("|---" * 6 + "|")
    for cases in (15, 30, 90):
        for choices in CHOICES:
            every = [study(number, cases, choices) for number in range(studies)]
            for sensitivity in SENSITIVITIES:
                before, after, supported = np.mean([found[sensitivity] for found in every], axis=0)
                # With fewer cases, even a threshold without misses would prove too little.
                said = f"{before:.3f}" if sensitivity**cases <= 1 - CONFIDENCE else "no promise"
                print(f"| {cases} | {choices} | {sensitivity} | {said} | {after:.3f} | {supported:.3f} |", flush=True)
    print("validation cases that a promise corrected for the choices (by a union bound) would need:")
    for sensitivity in SENSITIVITIES:
        needed = [math.ceil(math.log((1 - CONFIDENCE) / choices) / math.log(sensitivity)) for choices in CHOICES]
        print(f"  {sensitivity}: " + ", ".join(f"{n} for {c}" for n, c in zip(needed, CHOICES, strict=True)))


if __name__ == "__main__":
    main()
