"""Models and weights: every architecture trains with three outputs, and weights are complete or refused."""

import hashlib
import io
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model
from torchvision.models._api import Weights

from busi_tune.config import Config
from busi_tune.data.dataset import Part
from busi_tune.errors import BusiTuneError, ConfigError, WeightsError
from busi_tune.progress import Silent
from busi_tune.training.batches import to_device
from busi_tune.training.fit import logits_of, train_epoch
from busi_tune.training.model import ARCHITECTURES, build_model, check_model, untrained
from busi_tune.training.state import TrainingState
from busi_tune.training.weights import imagenet_state
from exported import Exported

pytest_plugins = ["exported"]


def noise(size: int) -> Part:
    """Six images of noise, two of each class."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), dtype=np.uint8)
    return Part(pixels, np.arange(6), np.array([0, 1, 2, 0, 1, 2]), tuple("abcdef"))


def one_sentence(error: BusiTuneError) -> str:
    """The error's text; it must be one line that ends with a full stop."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("alexnet", 64),
        ("densenet121", 32),
        ("efficientnet_b0", 32),
        ("googlenet", 32),
        ("inception_v3", 96),
        ("mobilenet_v3_small", 32),
        ("resnet18", 32),
        ("shufflenet_v2_x0_5", 32),
        ("squeezenet1_1", 32),
        ("swin_t", 32),
        ("vit_b_32", 64),
    ],
)
def test_an_architecture_gets_three_outputs_and_trains(arch: str, size: int, tiny: Config) -> None:
    config = tiny.replace(arch=arch, image_size=size, batch_size=3)
    state = TrainingState.start(config, 3)
    before = {name: value.clone() for name, value in state.weights().items()}
    data = to_device(noise(size), config.device, mean=config.mean, std=config.std)
    loss = train_epoch(state, data, torch.ones(3), epoch=1)
    assert torch.isfinite(loss)
    changed = {name for name, value in state.weights().items() if not torch.equal(value, before[name])}
    assert {name for name, _ in state.model.named_parameters()} <= changed | frozen(state)
    logits = logits_of(state.model, data, "float32")
    assert logits.shape == (6, 3)
    assert torch.isfinite(logits).all()


def frozen(state: TrainingState) -> set[str]:
    """Parameters without a gradient from this batch: AdamW changes them by weight decay only, and zeros not at all."""
    return {name for name, value in state.model.named_parameters() if value.grad is None or not value.grad.any()}


def test_the_start_is_a_function_of_the_seed(tiny: Config) -> None:
    first, again, other = (build_model(tiny.replace(seed=seed), 3).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize(
    ("arch", "nearest"),
    [("resnet81", "resnet18"), ("efficient_b0", "efficientnet_b0"), ("Densenet121", "densenet121")],
)
def test_an_unknown_architecture_names_the_nearest(arch: str, nearest: str, tiny: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        untrained(tiny.replace(arch=arch), 3)
    text = str(caught.value)
    assert repr(arch) in text
    assert f"did you mean {nearest!r}" in text
    assert nearest in ARCHITECTURES


def test_an_architecture_like_no_other(tiny: Config) -> None:
    with pytest.raises(ConfigError, match="unknown architecture 'xyzzy'"):
        untrained(tiny.replace(arch="xyzzy"), 3)


@pytest.mark.parametrize("arch", ["resnet50", "regnet_y_400mf", "vit_b_32", "swin_t", "googlenet", "inception_v3"])
def test_a_model_is_checked_without_its_memory(arch: str) -> None:
    check_model(Config(arch=arch, weights="imagenet", image_size=224), Silent())


def test_the_check_before_training_changes_no_weight(tiny: Config) -> None:
    before = untrained(tiny, 3).state_dict()
    check_model(tiny, Silent())
    assert all(torch.equal(value, before[name]) for name, value in untrained(tiny, 3).state_dict().items())


@pytest.mark.parametrize(("arch", "size"), [("alexnet", 32), ("inception_v3", 32), ("vit_b_32", 48), ("maxvit_t", 32)])
def test_a_size_that_the_architecture_does_not_take(arch: str, size: int, tiny: Config) -> None:
    config = tiny.replace(arch=arch, image_size=size)
    with pytest.raises(ConfigError) as caught:
        untrained(config, 3)
    text = one_sentence(caught.value)
    with pytest.raises(ConfigError) as early:
        check_model(config, Silent())
    assert str(early.value) == text
    assert text.startswith(f"{arch} does not take images of {size} pixels (")
    assert text.endswith("choose another --image-size.")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file in the form of torchvision's published weights for 1000 classes, and its tensors."""
    torch.manual_seed(7)
    state = get_model("resnet18", weights=None).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet18-published.pth"
    torch.save(state, path)
    return path, dict(state)


def test_weights_for_other_classes_keep_a_fresh_head(published: tuple[Path, dict[str, Tensor]], tiny: Config) -> None:
    path, state = published
    given = build_model(tiny.replace(weights=str(path)), 3).state_dict()
    fresh = untrained(tiny, 3).state_dict()
    assert given.keys() == state.keys()
    for name, value in given.items():
        expected = fresh if name.startswith("fc.") else state
        assert torch.equal(value, expected[name]), name
    assert given["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize(
    ("arch", "size", "head"),
    [
        ("squeezenet1_1", 32, {"classifier.1.weight", "classifier.1.bias"}),
        ("mobilenet_v3_small", 32, {"classifier.3.weight", "classifier.3.bias"}),
        ("densenet121", 32, {"classifier.weight", "classifier.bias"}),
        ("inception_v3", 96, {"fc.weight", "fc.bias"}),
        ("swin_t", 32, {"head.weight", "head.bias"}),
    ],
)
def test_only_the_head_is_fresh(arch: str, size: int, head: set[str], tmp_path: Path, tiny: Config) -> None:
    config = tiny.replace(arch=arch, image_size=size)
    path = tmp_path / f"{arch}.pth"
    extra = {"init_weights": True} if arch == "inception_v3" else {}
    torch.manual_seed(7)
    source = get_model(arch, weights=None, **extra)
    torch.save(source.state_dict(), path)
    given = dict(build_model(config.replace(weights=str(path)), 3).named_parameters())
    path.unlink()
    published = dict(source.named_parameters())
    assert {name for name, value in given.items() if not torch.equal(value, published[name])} == head


@pytest.mark.slow
def test_our_own_weights_are_loaded_whole(exported: Exported, tiny: Config) -> None:
    (path,) = (exported.run / "checkpoints").glob("best-*.safetensors")
    given = build_model(tiny.replace(weights=str(path)), 3).state_dict()
    expected = load_file(path)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


def test_weights_of_another_architecture_are_refused(
    published: tuple[Path, dict[str, Tensor]], exported: Exported, tiny: Config
) -> None:
    (ours,) = (exported.run / "checkpoints").glob("best-*.safetensors")
    for path, arch in ((published[0], "resnet34"), (ours, "mobilenet_v3_small")):
        with pytest.raises(WeightsError, match=f"do not fit {arch}") as caught:
            build_model(tiny.replace(arch=arch, weights=str(path)), 3)
        assert one_sentence(caught.value).endswith(
            f"name weights of {arch} made for this --image-size, or use --weights none."
        )


def saved(value: object, *, zipped: bool = True) -> bytes:
    """The bytes that `torch.save` writes for a value."""
    data = io.BytesIO()
    torch.save(value, data, _use_new_zipfile_serialization=zipped)
    return data.getvalue()


STATE = {"a": torch.arange(3.0)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("w.pth", saved(STATE)[:-200], id="truncated zip"),
        pytest.param("w.pth", saved(STATE, zipped=False)[:-6], id="truncated old format"),
        pytest.param("w.pth", saved([1, 2]), id="a list"),
        pytest.param("w.pth", saved({"model": STATE, "epoch": 3}), id="a dict of more"),
        pytest.param("w.pth", saved(nn.Linear(2, 2)), id="a module"),
        pytest.param("w.pth", b"\x89PNG\r\n\x1a\n" + bytes(100), id="a picture"),
        pytest.param("w.pth", b"", id="empty"),
        pytest.param("w.pth", b"hello world\n", id="text"),
        pytest.param("w.safetensors", b"", id="empty safetensors"),
        pytest.param("w.safetensors", b"hello world\n", id="text as safetensors"),
        pytest.param("w.safetensors", saved(STATE), id="zip as safetensors"),
    ],
)
def test_a_file_without_weights_is_refused(name: str, content: bytes, tmp_path: Path, tiny: Config) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        build_model(tiny.replace(weights=str(path)), 3)
    text = one_sentence(caught.value)
    assert str(path) in text
    assert "--weights none" in text


def test_a_file_that_is_not_there(tmp_path: Path, tiny: Config) -> None:
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors", tmp_path):
        with pytest.raises(WeightsError) as caught:
            build_model(tiny.replace(weights=str(path)), 3)
        assert str(path) in one_sentence(caught.value)


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["pickle", "zip", "old format"])
def test_code_in_a_file_of_weights_is_not_run(form: str, tmp_path: Path, tiny: Config) -> None:
    folder = tmp_path / "sprung"
    state = {"a": Trap(folder)}
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(state, protocol=2) if form == "pickle" else saved(state, zipped=form == "zip"))
    with pytest.raises(WeightsError) as caught:
        build_model(tiny.replace(weights=str(path)), 3)
    one_sentence(caught.value)
    assert not folder.exists()


def choices(port: int, digest: str) -> type[WeightsEnum]:
    """An enum of weights like torchvision's, with a URL on this machine."""
    published = Weights(url=f"http://127.0.0.1:{port}/resnet18-{digest[:8]}.pth", transforms=nn.Identity, meta={})
    made: type[WeightsEnum] = WeightsEnum("LocalWeights", {"IMAGENET1K_V2": published, "DEFAULT": published})
    return made


@contextmanager
def served(content: bytes, *, cut: int | None = None, status: int = 200) -> Iterator[int]:
    """Serves `content` on the port that it yields, and closes the connection after `cut` bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:cut])

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering(reply: bytes | None) -> Iterator[int]:
    """Yields a port that answers one request with `reply`, or never answers (None)."""
    done = threading.Event()

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            if reply is None:
                done.wait()
            else:
                connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for PyTorch's downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def kept(hub: Path) -> list[str]:
    """The files that exist after a download."""
    return [path.name for path in hub.rglob("*") if path.is_file()]


def refused(port: int, digest: str) -> str:
    """The one-sentence error when weights cannot be downloaded."""
    with pytest.raises(WeightsError) as caught:
        imagenet_state(choices(port, digest), "resnet18")
    text = one_sentence(caught.value)
    for part in ("resnet18", f"http://127.0.0.1:{port}/", "--weights none", "--weights FILE"):
        assert part in text
    return text


GOOD = saved(STATE)
DIGEST = hashlib.sha256(GOOD).hexdigest()


def test_a_download_with_the_right_hash(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(GOOD) as port:
        state = imagenet_state(choices(port, DIGEST), "resnet18")
    # The server has stopped, so the second call reads the cached file.
    again = imagenet_state(choices(port, DIGEST), "resnet18")
    for given in (state, again):
        assert given.keys() == STATE.keys()
        assert torch.equal(given["a"], STATE["a"])
    assert kept(hub) == [f"resnet18-{DIGEST[:8]}.pth"]
    assert capsys.readouterr().out == ""


def test_a_wrong_hash_is_refused(hub: Path) -> None:
    with served(GOOD) as port:
        assert "invalid hash value" in refused(port, "0" * 64)
    assert kept(hub) == []


def test_a_download_that_breaks_off(hub: Path) -> None:
    with served(GOOD, cut=len(GOOD) // 2) as port:
        refused(port, DIGEST)
    assert kept(hub) == []


def test_a_file_that_is_not_served(hub: Path) -> None:
    with served(b"no", status=404) as port:
        assert "Not Found" in refused(port, DIGEST)
    assert kept(hub) == []


def test_nobody_there(hub: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "refused" in refused(port, DIGEST)
    assert kept(hub) == []


def test_a_server_that_says_nothing(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busi_tune.training.weights.DOWNLOAD_TIMEOUT", 0.2)
    before = socket.getdefaulttimeout()
    with answering(None) as port:
        assert "timed out" in refused(port, DIGEST)
    assert socket.getdefaulttimeout() == before
    assert kept(hub) == []


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"", id="hangs up"),
        pytest.param(b"hello\r\n\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nabc", id="half a chunk"),
    ],
)
def test_a_server_that_is_none(reply: bytes, hub: Path) -> None:
    with answering(reply) as port:
        refused(port, DIGEST)
    assert kept(hub) == []


def test_code_in_downloaded_weights_is_not_run(hub: Path) -> None:
    folder = hub / "sprung"
    content = saved({"a": Trap(folder)})
    with served(content) as port, pytest.raises(WeightsError):
        imagenet_state(choices(port, hashlib.sha256(content).hexdigest()), "resnet18")
    assert not folder.exists()
