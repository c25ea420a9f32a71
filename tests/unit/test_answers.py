"""The exported model's predictions equal the run's own predictions."""

import json

import numpy as np
import pandas as pd
import pytest

from busi_tune import images
from busi_tune.inference import open_export, predict_files
from exported import Exported

pytest_plugins = ["exported"]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_answers_are_those_of_the_run(batch_size: int, exported: Exported) -> None:
    # Reversed, so that a prediction in sorted file order fails the test.
    expected = pd.read_csv(exported.run / "predictions.csv")[::-1]
    classifier = open_export(exported.folder)
    given = list(predict_files(classifier, [exported.data / path for path in expected["path"]], batch_size))
    assert [found.path for found in given] == [str(exported.data / path) for path in expected["path"]]
    assert [found.predicted for found in given] == list(expected["predicted"])
    figures = json.loads((exported.run / "metrics.json").read_text())
    classes = list(figures["test"]["per_class"])
    assert list(classifier.classes) == classes
    matrix = np.zeros((3, 3), dtype=int)
    for truth, found in zip(expected["class"], given, strict=True):
        matrix[classes.index(truth), classes.index(found.predicted)] += 1
    assert matrix.tolist() == figures["test"]["confusion_matrix"]


@pytest.mark.slow
def test_the_graphs_own_resize_gives_the_same_bits(exported: Exported) -> None:
    """`predict` resizes a picture before the graph, other programs pass it whole."""
    classifier = open_export(exported.folder)
    paths = [exported.data / path for path in pd.read_csv(exported.run / "predictions.csv")["path"]]
    whole = [np.asarray(images.decode(path)) for path in paths]
    assert len({pixels.shape for pixels in whole}) > 3
    for pixels, found in zip(whole, predict_files(classifier, paths, 1), strict=True):
        assert tuple(classifier.run(pixels[None]).probabilities[0].tolist()) == found.probabilities
