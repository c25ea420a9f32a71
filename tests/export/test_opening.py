"""Opening a model: certified models, and on request others that have our form and survive a trial run."""

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from busi_tune.cli import exit_code
from busi_tune.errors import BusiTuneError, ConfigError, FileError
from busi_tune.inference import Classifier, open_export, probe
from small_export import CLASSES, FACTS, SIZE, rewrite, small_model, without, write_export

UNVERIFIED = "or use it as it is with --allow-unverified"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export with three models, one of which did not pass."""
    models: dict[str, onnx.ModelProto | bytes] = {"model.onnx": small_model(), "model.int8.onnx": b"int8"}
    models[f"model-{SIZE}.onnx"] = small_model(side=SIZE)
    return write_export(tmp_path / "export", models, failed=["model.int8.onnx"])


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_an_export_and_each_of_its_models_open(folder: Path) -> None:
    for path, fixed in ((folder, None), (folder / "model.onnx", None), (folder / f"model-{SIZE}.onnx", SIZE)):
        classifier = open_export(path)
        assert (list(classifier.classes), classifier.image_size, classifier.fixed_size) == (CLASSES, SIZE, fixed)
        answers = classifier.run(pixels(2, SIZE, SIZE))
        assert answers.logits.shape == answers.probabilities.shape == (2, 3)
        assert answers.guard.shape == (2, 2)
    assert classifier.metadata.threshold == 0.3
    assert [guard.limit for guard in classifier.metadata.guards] == [20, 250]


def test_every_optimisation_gives_the_same_answers(folder: Path) -> None:
    logits = [
        open_export(folder, optimisation=level).run(pixels(3, 40, 30)).logits for level in ("none", "basic", "all")
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-5)


def change_a_bit(folder: Path) -> None:
    """Flips one bit of the model."""
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def change_a_weight(folder: Path) -> None:
    """Changes one weight of the model."""
    model = onnx.load(folder / "model.onnx")
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[0] += 1e-3
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "conv.weight"))
    onnx.save(model, folder / "model.onnx")


def drop_model(folder: Path) -> None:
    """Deletes the model."""
    (folder / "model.onnx").unlink()


def drop_certificate(folder: Path) -> None:
    """Deletes the certificate."""
    (folder / "verification.json").unlink()


def break_certificate(folder: Path) -> None:
    """Cuts the certificate off."""
    path = folder / "verification.json"
    path.write_bytes(path.read_bytes()[:100])


def change_certificate(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Applies `change` to the content of verification.json."""

    return partial(rewrite, change=change)


def entry_of(content: dict[str, Any]) -> dict[str, Any]:
    """The entry of model.onnx in verification.json."""
    entry: dict[str, Any] = content["models"]["model.onnx"]
    return entry


def list_for_certificate(folder: Path) -> None:
    """Writes a list in place of the certificate."""
    (folder / "verification.json").write_text("[]")


def move_model(folder: Path) -> None:
    """Moves another entry's model to model.onnx."""
    (folder / f"model-{SIZE}.onnx").replace(folder / "model.onnx")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_a_bit, "is not the file that was certified"),
        (change_a_weight, "is not the file that was certified"),
        (move_model, "is not the file that was certified"),
        (drop_model, "holds no model.onnx; name a folder that `busi-tune export` made"),
        (drop_certificate, f"verification.json does not exist); export it again, {UNVERIFIED}"),
        (break_certificate, "verification.json is not valid JSON"),
        (change_certificate(dict.clear), "has the schema None, and this busi-tune reads busi-tune.verification"),
        (change_certificate(lambda c: c.pop("schema")), "has the schema None"),
        (change_certificate(lambda c: c.update(schema="busi-tune.verification/9")), "busi-tune.verification/9, and"),
        (change_certificate(lambda c: c.pop("split")), "is damaged (Object missing required field `split`)"),
        (
            change_certificate(lambda c: c.update(models=[])),
            "is damaged (Expected `object`, got `array` - at `$.models",
        ),
        (change_certificate(lambda c: c["models"].pop("model.onnx")), "has no certificate in"),
        (change_certificate(lambda c: c["models"].update({"model.onnx": "yes"})), "is damaged (Expected `object`"),
        (change_certificate(lambda c: entry_of(c).update(passed="true")), "is damaged (Expected `bool`, got `str`"),
        (change_certificate(lambda c: entry_of(c).update(passed=False)), "did not pass its verification"),
        (change_certificate(lambda c: entry_of(c).pop("model_sha256")), "is not the file that was certified"),
        (list_for_certificate, "must hold a JSON object, not a list"),
    ],
)
def test_a_model_that_is_not_certified_is_refused(
    damage: Callable[[Path], None], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    assert exit_code(["predict", str(folder), __file__]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("busi-tune: ")
    assert reason in shown.err
    assert len(shown.err.splitlines()) == 1


def test_each_model_has_a_certificate_of_its_own(folder: Path) -> None:
    with pytest.raises(BusiTuneError, match=r"model.int8.onnx did not pass its verification, as .* says"):
        open_export(folder / "model.int8.onnx")
    (folder / "other.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(BusiTuneError, match=r"other.onnx has no certificate in .*; export it again"):
        open_export(folder / "other.onnx")


def as_file(tmp_path: Path, model: onnx.ModelProto | bytes) -> Path:
    """Writes a model to a file without a certificate."""
    path = tmp_path / "elsewhere.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@pytest.mark.parametrize("side", [None, SIZE])
@pytest.mark.parametrize("missing", [(), ("preprocessing_version", "operating_point", "guard")])
def test_a_model_from_elsewhere_is_used_on_request(missing: tuple[str, ...], side: int | None, tmp_path: Path) -> None:
    path = as_file(tmp_path, small_model(without(*missing), side=side))
    with pytest.raises(BusiTuneError, match=UNVERIFIED):
        open_export(path)
    classifier = open_export(path, allow_unverified=True)
    assert classifier.metadata.threshold == (None if missing else 0.3)
    assert classifier.run(pixels(2, SIZE, SIZE)).guard.shape == (2, 0 if missing else 2)


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """The model with another name for one value of the graph."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for entry in (*model.graph.input, *model.graph.output):
        entry.name = new if entry.name == old else entry.name
    return model


def facts(**changed: object) -> onnx.ModelProto:
    """The model with changed metadata."""
    return small_model(FACTS | {name: v if isinstance(v, str) else json.dumps(v) for name, v in changed.items()})


def not_a_number() -> onnx.ModelProto:
    """A model whose logits are NaN."""
    model = small_model()
    nan = numpy_helper.from_array(np.full((3, 4), np.nan, np.float32), "fc.weight")
    model.graph.initializer[2].CopyFrom(nan)
    return model


def one_answer() -> onnx.ModelProto:
    """A model that gives one answer for a whole batch."""
    model = small_model()
    model.graph.node.append(helper.make_node("ReduceMean", ["logits_of_each"], ["logits"], keepdims=1))
    for node in model.graph.node[:-1]:
        node.input[:] = ["logits_of_each" if name == "logits" else name for name in node.input]
        node.output[:] = ["logits_of_each" if name == "logits" else name for name in node.output]
    return model


def no_guard() -> onnx.ModelProto:
    """A model with a guard in its metadata but not in its graph."""
    model = small_model()
    del model.graph.output[3]
    return model


USE = "is not a model that busi-tune can use"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "is not an ONNX file"),
        (small_model().SerializeToString()[:400], "is not an ONNX file"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), USE),
        (small_model(without("classes")), "its metadata name no classes"),
        (small_model(without("image_size")), "its metadata name no image size"),
        (facts(classes=["a", "a", "b"]), "not a list of different names"),
        (facts(classes=["a", "b\u001b[2J", "c"]), "not a list of different names"),
        (facts(classes="[" * 100_000), USE),
        (facts(classes='["a", "b", 3]'), "its classes is damaged: Expected `str`, got `int`"),
        (facts(classes=["malignant", "b"]), "its output logits must have 2 numbers for each image"),
        (facts(image_size="0"), "no image size"),
        (facts(image_size="sixteen"), USE),
        (facts(preprocessing_version="2"), "was made for preprocessing 2, and this busi-tune does 1"),
        (
            facts(operating_point={"class": "tumour", "threshold": 0.1}),
            "its operating_point is of a class that it does not have",
        ),
        (facts(operating_point={"class": "malignant"}), "missing required field `threshold`"),
        (facts(operating_point='{"class": "malignant", "threshold": NaN}'), "its operating_point is damaged"),
        (facts(operating_point='{"class": "malignant", "threshold": 1e999}'), "its operating_point is damaged"),
        (facts(classes=["a", "b", "c"]), "its operating_point is of a class that it does not have"),
        (facts(guard=[{"name": "a", "limit": 1}]), "its guard is damaged: Object missing required field `warning`"),
        (facts(guard=[{"name": "a", "limit": "1", "warning": "w"}]), "its guard is damaged: Expected `float`"),
        (facts(guard=[{"name": "a", "limit": 1, "warning": "\u001b[2J"}]), "its guard is damaged: a name or a warning"),
        (facts(guard={"name": "a"}), "its guard is damaged: Expected `array`"),
        (facts(guard="null"), "its guard is damaged: Expected `array`, got `null`"),
        (
            facts(guard=[{"name": "a", "limit": 1, "warning": "w"}]),
            "its output guard must have 1 numbers for each",
        ),
        (renamed(small_model(), "images", "pictures"), "does not take `images`"),
        (renamed(small_model(), "probabilities", "chances"), "does not take `images`"),
        (not_a_number(), "its logits are not finite numbers"),
        (one_answer(), USE),
        (no_guard(), USE),
        (facts(note="PLACE").SerializeToString().replace(b"PLACE", b"PL\x96CE"), USE),
    ],
)
def test_a_model_that_is_not_of_our_form_is_refused(
    model: onnx.ModelProto | bytes, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = as_file(tmp_path, model)
    with pytest.raises(FileError) as refusal:
        open_export(path, allow_unverified=True)
    assert reason in str(refusal.value)
    assert str(refusal.value).startswith(f"{path} ")
    assert len(str(refusal.value).splitlines()) == 1
    # ONNX Runtime itself would print messages for some of these models.
    assert capfd.readouterr() == ("", "")


def beside(nodes: list[onnx.NodeProto], shape: list[int]) -> onnx.ModelProto:
    """The model with further nodes, which make one number from a tensor of `shape` and add it to the logits."""
    model = small_model()
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "many"))
    for node in model.graph.node:
        node.input[:] = ["plain" if name == "logits" else name for name in node.input]
        node.output[:] = ["plain" if name == "logits" else name for name in node.output]
    first = helper.make_node("ConstantOfShape", ["many"], ["made"])
    last = [
        helper.make_node("ReduceMax", ["end"], ["number"], keepdims=0),
        helper.make_node("Add", ["plain", "number"], ["logits"]),
    ]
    model.graph.node.extend([first, *nodes, *last])
    return model


@pytest.mark.parametrize("elements", [10**12, 2 * 10**9, 2**62])
def test_a_model_that_fills_the_memory_is_refused(elements: int, tmp_path: Path) -> None:
    path = as_file(tmp_path, beside([helper.make_node("Identity", ["made"], ["end"])], [elements]))
    with pytest.raises(FileError, match=r"elsewhere.onnx (ended the process|is not a model)"):
        open_export(path, allow_unverified=True)


def test_a_model_that_computes_for_minutes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SECONDS", 1)
    names = ["made", *map(str, range(1000)), "end"]
    products = [helper.make_node("MatMul", ["made", old], [new]) for old, new in pairwise(names)]
    path = as_file(tmp_path, beside(products, [3000, 3000]))
    with pytest.raises(FileError, match=r"elsewhere.onnx (ended the process|did not answer within 3 s)"):
        open_export(path, allow_unverified=True)


def test_the_process_of_the_trial_may_crash(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n'busi_tune.inference.probe' in sys.orig_argv and os.abort()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileError, match=r"model.onnx ended the process in which it was tried \(-6\); it is not used."):
        probe.try_in_a_child(folder / "model.onnx", "all")


def test_a_certified_model_is_not_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SECONDS", -1)
    assert open_export(folder, allow_unverified=True).image_size == SIZE


@pytest.mark.parametrize("name", ["cuda", "azure", ""])
def test_a_provider_that_is_not_there(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        open_export(folder, provider=name)
    assert str(refusal.value) == f"--provider must be one that this ONNX Runtime has (cpu), not {name!r}."
    assert open_export(folder, provider="CPU").image_size == SIZE


def test_opening_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    Classifier(folder / "model.onnx")
    open_export(folder / "model.onnx", allow_unverified=True)
    assert sorted(folder.iterdir()) == before
