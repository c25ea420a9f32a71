"""The positive class: `malignant` by default, or the class of --positive; also in runs of earlier versions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from busi_tune import files
from busi_tune.cli import exit_code
from busi_tune.config import Config
from busi_tune.data.dataset import open_dataset
from busi_tune.errors import ConfigError, RunError
from busi_tune.evaluation.metrics import Answers, proportions, summarise
from busi_tune.export import gate
from busi_tune.export.calibration import evaluated, operating_point
from busi_tune.progress import Silent
from busi_tune.results import IDENTITY
from busi_tune.search.plan import Plan, open_plan
from busi_tune.search.space import default_space
from busi_tune.search.storage import Database
from busi_tune.training import run_folder
from busi_tune.training.run_folder import Identity
from image_folders import folder_of, picture, save
from recorder import Recorder
from small_export import FACTS, POINT, SIZE, small_model

USUAL = ("benign", "malignant", "normal")


def answers(classes: tuple[str, ...] = USUAL, positive: str | None = None) -> Answers:
    """Sixty random answers, identical for all class names."""
    generator = np.random.default_rng(5)
    probabilities = generator.dirichlet(np.ones(len(classes)), size=60)
    return Answers(generator.integers(0, len(classes), 60), probabilities, classes, positive)


def test_names_are_matched_without_case() -> None:
    usual, other = summarise(answers()), summarise(answers(("BENIGN ", "Malignant", "Normal")))
    for key in ("malignant_vs_rest", "benign_vs_malignant"):
        assert other[key] == usual[key]
    assert "positive" not in other


@pytest.mark.parametrize("positive", ["cancer", "Cancer", " CANCER"])
def test_a_disease_of_another_name_has_the_same_metrics_under_honest_keys(positive: str) -> None:
    usual, other = summarise(answers()), summarise(answers(("benign", "cancer", "normal"), positive))
    assert other["positive_vs_rest"] == usual["malignant_vs_rest"]
    assert other["benign_vs_positive"] == usual["benign_vs_malignant"]
    assert other["positive"] == "cancer"
    assert not {"malignant_vs_rest", "benign_vs_malignant"} & set(other)
    hits = proportions(answers(("benign", "cancer", "normal"), positive))
    assert np.array_equal(
        hits["positive_vs_rest", "sensitivity"], proportions(answers())["malignant_vs_rest", "sensitivity"]
    )


def test_any_class_may_be_the_disease_and_malignant_need_not_be_named() -> None:
    assert summarise(answers(positive="MALIGNANT")) == summarise(answers())
    found = summarise(answers(positive="benign"))
    assert found["positive"] == "benign"
    assert not {"malignant_vs_rest", "benign_vs_malignant", "benign_vs_positive"} & set(found)
    kept = answers(positive="normal").subset(np.arange(60) < 40)
    assert summarise(kept)["positive"] == "normal"


def test_the_operating_point_is_one_of_the_disease() -> None:
    groups = np.arange(60)
    usual, other = (operating_point(given, groups, 0.8) for given in (answers(), answers(("b", "C", "n"), "c")))
    assert (other.threshold, other.missed) == (usual.threshold, usual.missed)
    assert other.entry()["class"] == "C"
    assert " C validation cases are below it." in other.entry()["sentence"]
    assert usual.entry()["class"] == "malignant"
    named = evaluated(other, answers(("rest", "C", "n"), "C"), groups)
    as_usual = evaluated(usual, answers(), groups)
    assert named["test"] == as_usual["test"]
    assert named["claim"]["sentence"] == as_usual["claim"]["sentence"].replace("malignant", "C")
    with pytest.raises(ConfigError) as error:
        operating_point(answers(("b", "C", "n")), groups, 0.8)
    assert str(error.value) == (
        "sensitivity needs a class for the disease, and the classes are b, C, n; train with --positive NAME, which "
        "names this class."
    )


def test_the_gate_of_a_smaller_model_watches_the_disease() -> None:
    labels = np.array([0] * 500 + [1] * 10)
    exact = np.eye(2)[labels] * 4
    worse = exact.copy()
    worse[-2:] = worse[-2:, ::-1]
    assert gate.compare(exact, worse, labels, ("healthy", "cancer")).passed
    found = gate.compare(exact, worse, labels, ("healthy", "cancer"), positive="Cancer")
    assert not found.passed
    assert found.reasons == ["its sensitivity falls by 20.0% from 100.0%, more than 1.0%"]


def test_what_is_said_where_no_class_is_the_disease(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", [f"{label}/{k}.png" for label in ("ill", "well") for k in range(8)])
    notices = Recorder()
    open_dataset(root, Config(), notices)
    assert notices.notices[:2] == [
        "Classes: ill 8, well 8.",
        "No class is called malignant, so there will be no sensitivity and specificity; name the class of the disease "
        "with --positive NAME.",
    ]
    notices = Recorder()
    open_dataset(root, Config(positive="Ill"), notices)
    assert notices.notices[0] == "Classes: ill 8, well 8."
    assert not any("--positive" in text for text in notices.notices)
    with pytest.raises(ConfigError) as error:
        open_dataset(root, Config(positive="sick"), Silent())
    assert str(error.value) == "positive must name a class, one of ill, well, not 'sick'."
    with pytest.raises(ConfigError, match="positive must name a class, not ' '"):
        Config(positive=" ")


def test_a_baseline_has_the_metrics_of_its_disease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "data", [f"{label}/{k}.png" for label in ("Cancer", "Benign") for k in range(12)])
    small = ["--arch", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "1", "--device", "cpu"]
    command = ["baseline", "--data", "data", "--out", "run", *small]
    assert exit_code([*command, "--positive", "cancer", "--json"]) == 0
    test = json.loads(capsys.readouterr().out)["test"]
    assert test["positive"] == "Cancer"
    assert test["positive_vs_rest"]["sensitivity"] == test["per_class"]["Cancer"]["recall"]
    assert set(test["benign_vs_positive"]) == {
        "accuracy",
        "sensitivity",
        "specificity",
        "roc_auc",
        "average_precision",
    }
    # The same run with equivalent names is shown again; another run is refused.
    assert exit_code([*command, "--positive", "CANCER", "--classes", "benign,cancer"]) == 0
    out = capsys.readouterr().out
    assert "Positive is Cancer." in out
    assert "positive vs rest sensitivity" in out
    assert exit_code(command) == 1
    assert "positive: 'cancer' -> None" in capsys.readouterr().err


def test_configurations_that_mean_the_same_have_one_identity() -> None:
    plain = Config().identity()
    assert Config(positive="Malignant ").identity() == Config(classes="benign,malignant").identity() == plain
    assert Config(positive="Cancer").identity() == Config(positive="cancer").identity() != plain
    assert set(plain) == set(Config().to_dict()) - {"classes"}


def test_a_run_and_a_study_from_before_these_options_are_read(tmp_path: Path, phantoms: Path, tiny: Config) -> None:
    split = open_dataset(phantoms, tiny, Silent()).split
    Identity(tiny, USUAL, split.fingerprint(), "", {}).write(tmp_path)
    split.write(tmp_path / "split.csv")
    plan = Plan(
        config=tiny,
        space=default_space(tiny),
        metric="val_accuracy",
        trial_epochs=2,
        split=split.fingerprint(),
        pruner="none",
    )
    study = files.make_folder(tmp_path / "study")
    database = Database.of(study, None, Silent())
    name = open_plan(study, plan, split, database)
    for path in (tmp_path / IDENTITY, study / "study.json"):
        document = files.read_json(path)
        for key in ("classes", "positive"):
            assert document["config"].pop(key, "missing") is None
        # Earlier versions also wrote no SHA-256 of the content.
        del document["sha256"]
        files.write_json(path, document)
    same = tiny.replace(positive="malignant", classes="benign,malignant,normal")
    assert run_folder.read_identity(tmp_path).config == tiny
    for config in (tiny, same):
        saved = run_folder.saved_split(tmp_path, config)
        assert saved is not None
        assert saved.fingerprint() == split.fingerprint()
        assert open_plan(study, Plan(**{**vars(plan), "config": config}), split, database) == name
    with pytest.raises(RunError, match="positive: None -> 'benign'"):
        run_folder.saved_split(tmp_path, tiny.replace(positive="benign"))
    with pytest.raises(RunError, match="positive: None -> 'benign'"):
        open_plan(study, Plan(**{**vars(plan), "config": tiny.replace(positive="benign")}), split, database)


def test_predictions_flag_the_disease_by_its_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = json.dumps(["benign", "cancer", "normal"])
    facts = {**FACTS, "classes": classes, "operating_point": json.dumps({**POINT, "class": "cancer"})}
    model, image = tmp_path / "model.onnx", tmp_path / "x.png"
    model.write_bytes(small_model(facts).SerializeToString())
    save(picture(3, SIZE), image)
    command = ["predict", str(model), str(image), "--allow-unverified"]
    assert exit_code([*command, "--json", "--csv", str(tmp_path / "answers.csv")]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["positive"] == (entry["probabilities"]["cancer"] >= POINT["threshold"])
    assert "malignant" not in entry
    with (tmp_path / "answers.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["positive"] == str(entry["positive"])
    assert exit_code(command) == 0
    assert capsys.readouterr().out.split()[:5] == ["predicted", "p(benign)", "p(cancer)", "p(normal)", "positive"]
