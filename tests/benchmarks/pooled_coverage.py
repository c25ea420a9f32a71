"""Coverage of the intervals of pooled answers of a cross-validation, with trained models.

    python tests/benchmarks/pooled_coverage.py [--images 760] [--folds 5] [--repetitions 1000]

A repetition draws images in groups of one to four similar ones (a group shares three fifths of the noise). It folds
whole groups, trains a classifier (linear discriminant analysis) on the other folds, and pools the answers. The
intervals are compared with two true values, both over 15,000 further groups: the metrics of these models, each on its
share of the groups, and the metrics of the procedure, which are the mean over all repetitions and their training data.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from busi_tune.evaluation import intervals
from busi_tune.evaluation.metrics import BALANCED, Answers, Floats, Labels, Name, scores

CLASSES = ("benign", "malignant", "normal")
FEATURES, SIGNAL, WITHIN, IMAGES_PER_GROUP = 20, 1.55, 0.6, 1.3
MANY = 15_000
# Metrics that equal others under a second name.
SAME = [BALANCED, *(("malignant_vs_rest", metric) for metric in ("sensitivity", "roc_auc", "average_precision"))]
Drawn = tuple[Floats, Labels, Labels]
Found = tuple[dict[Name, tuple[float, float]], Floats]


def draw(generator: np.random.Generator, groups: int) -> Drawn:
    """Features (images, `FEATURES`), labels and groups (images,); the mean of each class is on its own axis."""
    size = generator.choice([1, 2, 3, 4], p=[0.78, 0.16, 0.04, 0.02], size=groups)
    group = np.repeat(np.arange(groups), size)
    label = generator.choice(3, p=[0.56, 0.27, 0.17], size=groups)[group]
    shared = generator.standard_normal((groups, FEATURES))[group]
    own = generator.standard_normal((len(group), FEATURES))
    noise = np.sqrt(WITHIN) * shared + np.sqrt(1 - WITHIN) * own
    return SIGNAL * np.eye(3, FEATURES)[label] + noise, label, group


def folds_of(drawn: Drawn, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each image: the groups of each class are shuffled and dealt out."""
    _, label, group = drawn
    fold = np.zeros(int(group.max()) + 1, dtype=np.int64)
    for each in range(len(CLASSES)):
        own = generator.permutation(np.unique(group[label == each]))
        fold[own] = np.arange(len(own)) % count
    return np.asarray(fold[group])


def answered(models: Sequence[LinearDiscriminantAnalysis], drawn: Drawn, fold: NDArray[np.int64]) -> Answers:
    """The answers for all images, each by the model of its fold."""
    features, label, _ = drawn
    probabilities = np.empty((len(label), 3))
    for number, model in enumerate(models):
        probabilities[fold == number] = model.predict_proba(features[fold == number])
    return Answers(label, probabilities, CLASSES)


def repetition(
    number: int, groups: int, count: int, population: Drawn
) -> tuple[dict[Name, tuple[float, float]], Floats]:
    """The intervals of the pooled answers, and the metrics of the same models over the population."""
    generator = np.random.default_rng((17, number))
    drawn = draw(generator, groups)
    fold = folds_of(drawn, count, generator)
    models = [LinearDiscriminantAnalysis().fit(drawn[0][fold != each], drawn[1][fold != each]) for each in range(count)]
    edges = intervals.measure(answered(models, drawn, fold), drawn[2]).edges
    further = answered(models, population, population[2] % count)
    every = scores(further, np.ones((1, len(further.labels))))
    return edges, np.array([float(every[name][0]) for name in edges])


def show(images: int, count: int, repetitions: int) -> None:
    """Prints for each metric the coverage of both true values, and the mean width."""
    groups = round(images / IMAGES_PER_GROUP)
    population = draw(np.random.default_rng(3), MANY)
    found = [repetition(number, groups, count, population) for number in range(repetitions)]
    names = list(found[0][0])
    low, high = np.array([[edges[name] for name in names] for edges, _ in found]).transpose(2, 0, 1)
    models = np.array([values for _, values in found])
    accuracy = models[:, names.index(("accuracy",))].mean()
    print(f"{images} images, {count} folds, {repetitions} repetitions, accuracy {accuracy:.2f}")
    print("| metric | these models | the procedure | width |\n|---|---|---|---|")
    for column, name in enumerate(names):
        if name in SAME:
            continue
        held = [
            float(((low[:, column] <= truth) & (truth <= high[:, column])).mean())
            for truth in (models[:, column], models[:, column].mean())
        ]
        title = " ".join(name).removeprefix("per_class ").replace("_", " ")
        width = float((high - low)[:, column].mean())
        print(f"| {title} | {held[0]:.3f} | {held[1]:.3f} | {width:.3f} |", flush=True)


def main() -> None:
    """Simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=760)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=1000)
    options = parser.parse_args()
    show(options.images, options.folds, options.repetitions)


if __name__ == "__main__":
    main()
