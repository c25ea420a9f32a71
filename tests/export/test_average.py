"""The export of a cross-validation: the verified mean of the folds' probabilities, marked as untested."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from busi_tune import images, pipeline, results
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.errors import BusiTuneError
from busi_tune.evaluation.metrics import softmax
from busi_tune.export.verification import check_again
from busi_tune.export_options import ExportOptions
from busi_tune.inference import Classifier
from busi_tune.progress import Silent
from busi_tune.results import CrossvalFile, VerificationFile
from busi_tune.training import exportable, run_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(phantoms: Path, tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("average") / "study"
    config = tiny.replace(arch="squeezenet1_1", epochs=2)
    pipeline.crossval(phantoms, folder, config, CrossvalOptions(folds=2), Silent())
    return folder


@pytest.fixture(scope="module")
def place(study: Path) -> Path:
    return study.parent / "export"


@pytest.fixture(scope="module")
def certificate(study: Path, phantoms: Path, place: Path) -> VerificationFile:
    return pipeline.export(study, place, phantoms, Silent())


def test_the_export_answers_with_the_mean_of_the_models_probabilities(
    certificate: VerificationFile, study: Path, phantoms: Path, place: Path
) -> None:
    paths = [phantoms / path for path in pd.read_csv(study / "folds.csv")["path"][:6]]
    pixels = np.stack([images.resize(images.picture(path), 32) for path in paths])
    each = []
    for fold, temperature in zip((1, 2), certificate["averaged"]["temperatures"], strict=True):
        run = study / "folds" / str(fold)
        model = exportable.exportable_model(run, run_folder.read_identity(run))
        each.append(softmax(exportable.computed(model, pixels, "float64").before / temperature))
    expected = np.mean(each, axis=0)
    exported = Classifier(place / "model.onnx")
    for row, path in enumerate(paths):
        (found,) = exported.session.run(["probabilities"], {"images": images.picture(path)[None]})
        np.testing.assert_allclose(found[0], expected[row], atol=1e-5)


def test_it_is_verified_like_any_export_and_again(certificate: VerificationFile, phantoms: Path, place: Path) -> None:
    assert certificate["passed"]
    assert 0 < (certificate["max_error"] or 0) <= (certificate["tolerance"] or 0)
    assert certificate["guard"]["test"]["photographs"] > 0
    again = check_again(place, phantoms, Silent())
    assert again["answers_changed"] == certificate["answers_changed"] == 0


def test_its_figures_are_those_of_single_models_and_its_card_says_so(
    certificate: VerificationFile, study: Path, place: Path
) -> None:
    pooled = results.read(study / "pooled.json", CrossvalFile)["pooled"]
    # A temperature changes no predicted class.
    assert certificate["test"]["accuracy"] == pooled["accuracy"]
    assert certificate["test"]["images"] == pooled["images"]
    assert certificate["test"]["intervals"]["accuracy"] == pooled["intervals"]["accuracy"]
    cost = certificate["averaged"]
    assert cost["models"] == 2
    assert 1.9 < cost["bytes"]["average"] / cost["bytes"]["single"] < 2.2
    card = " ".join((place / "README.md").read_text().split())
    for part in (
        "the mean of the probabilities of 2 models",
        "These are not the figures of the average.",
        "no image is left to fit a threshold.",
        f"{cost['bytes']['average'] / 1e6:.1f} MB; a single model has {cost['bytes']['single'] / 1e6:.1f} MB.",
    ):
        assert part in card


@pytest.mark.usefixtures("certificate")
def test_one_fold_is_exported_as_its_run_and_what_cannot_be_is_refused(
    study: Path, phantoms: Path, tmp_path: Path
) -> None:
    alone = pipeline.export(study, tmp_path / "one", phantoms, Silent(), fold=2)
    assert "averaged" not in alone
    assert (
        alone["source_sha256"]
        == results.read(study / "folds" / "2" / "metrics.json", results.MetricsFile)["model_sha256"]
    )
    for folder, options, fold, problem in [
        (study, ExportOptions(), 3, r"^fold must be between 1 and 2, the folds of .*, not 3\.$"),
        (study / "folds" / "1", ExportOptions(), 1, r"^fold needs a finished cross-validation, and .* is not one; "),
        (study, ExportOptions(sensitivity=0.9), None, r"^sensitivity needs images that no model was trained"),
        (study, ExportOptions(int8=True), None, r"^int8 needs images that no model was trained on"),
        (study, ExportOptions(cam=True), None, r"^cam needs a single network, and this export is the mean of 2; "),
    ]:
        with pytest.raises(BusiTuneError, match=problem):
            pipeline.export(folder, tmp_path / "other", phantoms, Silent(), options=options, fold=fold)
        assert not list((tmp_path / "other").glob("[!.]*"))
