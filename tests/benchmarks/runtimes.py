"""An export in other runtimes: whether they can run it, and the differences from this ONNX Runtime.

    python tests/benchmarks/runtimes.py EXPORT --prepare DIR [--data IMAGES]
    OTHER_PYTHON tests/benchmarks/runtimes.py EXPORT --with DIR --runtime NAME
    python tests/benchmarks/runtimes.py EXPORT --with DIR --runtime web-wasm --modules NODE_MODULES
    node tests/benchmarks/runtimes.mjs EXPORT DIR NODE_MODULES

The first command writes noise and pictures, and the reference outputs. The other commands print a row of the table for
each model file. The second command needs only numpy and the runtime; NAME is a key of RUNTIMES. The third command runs
onnxruntime-web in Chromium (web-wasm, or web-webgpu in software), and the last one onnxruntime-node.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Answers = Mapping[str, Array]
Run = Callable[[Array], Answers]
# A function from the path of a model to a function from its input to its outputs.
Load = Callable[[Path], Run]
COMPARED = ("logits", "pixels")
SIZES = ((64, 64), (101, 77), (300, 411), (37, 90), (500, 333), (256, 256))
# The number of pictures of each class of --data.
PICTURES = 12


def onnxruntime() -> tuple[str, Load]:
    """ONNX Runtime on the CPU."""
    import onnxruntime as ort

    return f"ONNX Runtime {ort.__version__}", lambda path: _session(path.read_bytes())


def _session(model: bytes) -> Run:
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = [entry.name for entry in session.get_outputs()]
    return lambda given: dict(zip(outputs, session.run(None, {session.get_inputs()[0].name: given}), strict=True))


def openvino(precision: str = "") -> tuple[str, Load]:
    """OpenVINO on the CPU, in its default precision or in `precision`."""
    import openvino as ov

    hints = {"INFERENCE_PRECISION_HINT": precision} if precision else {}

    def load(path: Path) -> Run:
        compiled = ov.Core().compile_model(path, "CPU", hints)
        names = [output.names for output in compiled.outputs]

        def run(given: Array) -> Answers:
            found = compiled([given]).to_tuple()
            return {name: value for each, value in zip(names, found, strict=True) for name in each}

        return run

    return f"OpenVINO {ov.__version__.partition('-')[0]}{f', {precision}' if precision else ', default'}", load


def opencv() -> tuple[str, Load]:
    """OpenCV's DNN module."""
    import cv2

    def load(path: Path) -> Run:
        network = cv2.dnn.readNetFromONNX(str(path))
        # OpenCV 5 needs the names of all outputs. OpenCV 4.8 gives its own names to some.
        names = list(network.getUnconnectedOutLayersNames())

        def run(given: Array) -> Answers:
            network.setInput(given)
            return dict(zip(names, network.forward(names), strict=True))

        return run

    return f"OpenCV {cv2.__version__}", load


def reference() -> tuple[str, Load]:
    """ONNX's own evaluator in Python."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    def load(path: Path) -> Run:
        found = ReferenceEvaluator(str(path))
        return lambda given: dict(zip(found.output_names, found.run(None, {found.input_names[0]: given}), strict=True))

    return f"ReferenceEvaluator of onnx {onnx.__version__}", load


def onnxslim() -> tuple[str, Load]:
    """The file after onnxslim, in ONNX Runtime."""
    import onnx
    import onnxslim as tool

    return f"onnxslim {tool.__version__}", lambda path: _session(tool.slim(onnx.load(path)).SerializeToString())


def onnxsim() -> tuple[str, Load]:
    """The file after onnxsim, in ONNX Runtime."""
    import onnx
    import onnxsim as tool

    return f"onnxsim {tool.__version__}", lambda path: _session(tool.simplify(onnx.load(path))[0].SerializeToString())


def tract() -> tuple[str, Load]:
    """Tract, in Rust."""
    import tract as engine

    def load(path: Path) -> Run:
        runnable = engine.onnx().load(path).into_model().into_runnable()
        # The outputs have the names of their nodes, in the order of the file.
        names = ["logits", "probabilities", "pixels", "guard"][: runnable.output_count()]
        return lambda given: dict(
            zip(names, (value.to_numpy() for value in runnable.run([np.ascontiguousarray(given)])), strict=True)
        )

    return f"tract {engine.version()}", load


def ncnn() -> tuple[str, Load]:
    """The file converted by pnnx, in ncnn."""
    import ncnn as engine
    import pnnx

    program = Path(str(pnnx.__file__)).with_name("pnnx")

    def load(path: Path) -> Run:
        side = SIZES[0][0]
        shape = f"[1,3,{side},{side}]f32" if path.name == "network.onnx" else f"[1,{side},{side},3]u8"
        place = Path(tempfile.mkdtemp())
        copy = place / "model.onnx"
        copy.write_bytes(path.read_bytes())
        _called([str(program), str(copy), f"inputshape={shape}", "fp16=0"], place / "model.ncnn.bin")
        network = engine.Net()
        # Compute in float32. By default, ncnn uses float16, and logits are off by 7e-4.
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(network.opt, option, False)
        network.load_param(str(place / "model.ncnn.param"))
        network.load_model(str(place / "model.ncnn.bin"))

        def run(given: Array) -> Answers:
            with network.create_extractor() as extractor:
                extractor.input("in0", engine.Mat(np.ascontiguousarray(given[0])))
                return {"logits": np.array(extractor.extract("out0")[1])[None]}

        return run

    return f"ncnn {engine.__version__}", load


def mnn() -> tuple[str, Load]:
    """The file converted by MNN's own converter, in MNN."""
    import MNN

    def load(path: Path) -> Run:
        converted = Path(tempfile.mkdtemp()) / "model.mnn"
        flags = [
            "-f",
            "ONNX",
            "--modelFile",
            str(path.resolve()),
            "--MNNModel",
            str(converted),
            "--bizCode",
            "busi-tune",
        ]
        # The converter's own command line also reports its use over the network.
        _called([sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)", *flags], converted)
        expressions = MNN.expr
        entry = "input" if path.name == "network.onnx" else "images"
        # MNN keeps only one name for the pixels of model-S.onnx.
        names = list(COMPARED) if path.name in ("model.onnx", "model.int8.onnx", "model.float16.onnx") else ["logits"]
        module = MNN.nn.load_module_from_file(str(converted), [entry], names)

        def run(given: Array) -> Answers:
            layout = expressions.NCHW if entry == "input" else expressions.NHWC
            kind = expressions.float if entry == "input" else expressions.uint8
            filled = expressions.const(given.tobytes() if entry == "images" else given, list(given.shape), layout, kind)
            found = module.forward([filled])
            return {name: np.array(value.read()) for name, value in zip(names, found, strict=True)}

        return run

    return f"MNN {MNN.version()}", load


RUNTIMES: dict[str, Callable[[], tuple[str, Load]]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-f32": partial(openvino, "f32"),
    "opencv": opencv,
    "reference": reference,
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "tract": tract,
    "ncnn": ncnn,
    "mnn": mnn,
}


def _called(command: list[str], result: Path) -> None:
    """Run a converter. If it writes no `result`, the error contains the end of its output."""
    done = subprocess.run(command, cwd=result.parent, capture_output=True, text=True, check=False)
    if not result.exists():
        raise RuntimeError(f"{done.stdout}\n{done.stderr}".strip()[-200:] or f"exit code {done.returncode}")


def prepare(export: Path, place: Path, data: Path | None) -> None:
    """Write the inputs and this ONNX Runtime's outputs for each model file, as JSON, which JavaScript can read, too."""
    place.mkdir(parents=True, exist_ok=True)
    labels = json.loads((export / "labels.json").read_text())
    for path in sorted(export.glob("*.onnx")):
        run, cases = _session(path.read_bytes()), []
        for given in _inputs(path.name, labels, _pictures(data)):
            found = run(given)
            outputs = {name: _packed(found[name]) for name in COMPARED if name in found}
            cases.append({"given": _packed(given), "outputs": outputs})
        (place / f"{path.name}.json").write_text(json.dumps(cases))


def _pictures(data: Path | None) -> list[Any]:
    from PIL import Image

    folders = sorted(entry for entry in data.iterdir() if entry.is_dir()) if data else []
    names = [name for folder in folders for name in sorted(folder.glob("*.png")) if "mask" not in name.name]
    chosen = [name for folder in folders for name in [each for each in names if each.parent == folder][:PICTURES]]
    return [Image.open(name).convert("RGB") for name in chosen]


def _inputs(name: str, labels: dict[str, Any], pictures: list[Any]) -> Iterator[Array]:
    """Noise, and the pictures, in the form of the input of the model file `name`."""
    from PIL import Image

    noise, side = np.random.default_rng(0), labels["image_size"]
    given = [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES] + pictures
    for picture in given:
        if re.fullmatch(r"model-\d+\.onnx|network\.onnx", name):
            picture = picture.resize((side, side))  # noqa: PLW2901
        pixels = np.asarray(picture)[None]
        if name == "network.onnx":
            mean, deviation = (np.array(labels[key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))
            yield ((pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / deviation).astype(np.float32)
        else:
            yield pixels


def _packed(array: Array) -> dict[str, Any]:
    """An array in JSON: its type, shape and bytes."""
    return {"type": str(array.dtype), "dims": list(array.shape), "data": b64encode(array.tobytes()).decode()}


def _unpacked(packed: Mapping[str, Any]) -> Array:
    flat: Array = np.frombuffer(b64decode(packed["data"]), packed["type"])
    return flat.reshape(packed["dims"])


def row(title: str, path: Path, place: Path, load: Load) -> str:
    """A table row: runtime, file, largest logit difference, changed predictions, differently resized pictures."""
    worst, changed, resized, count = 0.0, 0, [0, 0], 0
    try:
        run = load(path)
        for case in json.loads((place / f"{path.name}.json").read_text()):
            found, known = run(_unpacked(case["given"])), {k: _unpacked(v) for k, v in case["outputs"].items()}
            logits = np.reshape(found["logits"], known["logits"].shape)
            worst = max(worst, float(np.abs(logits.astype(np.float64) - known["logits"].astype(np.float64)).max()))
            changed += int((logits.argmax(axis=1) != known["logits"].argmax(axis=1)).sum())
            if "pixels" in known and "pixels" in found:
                other = np.reshape(found["pixels"], known["pixels"].shape).astype(np.int64) != known["pixels"]
                resized = [resized[0] + int(other.any()), resized[1] + 1]
            count += 1
    except Exception as error:  # noqa: BLE001 - the table shows whatever a runtime raises
        text = " ".join(str(error).partition("Stack backtrace")[0].split()).replace("|", "/")
        return f"| {title} | {path.name} | no: {type(error).__name__} {text[-160:]} | | |"
    pixels = f"{resized[0]} of {resized[1]}" if resized[1] else ""
    return f"| {title} | {path.name} | {worst:.1e} | {changed} of {count} | {pixels} |"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of a folder's files."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def web_rows(
    provider: str, export: Path, place: Path, modules: Path, *, file: str = "*.onnx", most: int = 999
) -> list[str]:
    """The rows of onnxruntime-web in Chromium, for the first `most` pictures."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
    if provider == "webgpu":
        flags += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader"]
    for flag in flags:
        options.add_argument(flag)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        links = {"export": export, "cases": place, "node_modules": modules}
        for link, target in links.items():
            (root / link).symlink_to(target.resolve())
        (root / "runtimes.mjs").symlink_to(Path(__file__).with_suffix(".mjs").resolve())
        (root / "index.html").write_text("<!doctype html><title>runtimes</title>")
        with served(root) as address:
            browser = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
            try:
                browser.set_script_timeout(500)
                browser.get(f"{address}/index.html")
                names = sorted(path.name for path in export.glob(file))
                script = (
                    "const [provider, names, most, done] = arguments;"
                    "import('/runtimes.mjs').then((m) => m.browserRows(provider, names, most))"
                    ".then(done, (error) => done([`${error}`]))"
                )
                found: list[str] = browser.execute_async_script(script, provider, names, most)
                return found
            finally:
                browser.quit()


def main() -> None:
    """Prepare the inputs, or print the rows of one runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--with", dest="place", type=Path)
    parser.add_argument("--runtime", default="onnxruntime", choices=[*RUNTIMES, "web-wasm", "web-webgpu"])
    parser.add_argument("--modules", type=Path)
    parser.add_argument("--most", type=int, default=999, help="pictures in a browser; a GPU in software is slow")
    parser.add_argument("--file", default="*.onnx", help="one file, for runtimes that end the process")
    given = parser.parse_args()
    if given.prepare:
        prepare(given.export, given.prepare, given.data)
    elif given.runtime.startswith("web-"):
        provider, places = given.runtime.removeprefix("web-"), (given.export, given.place, given.modules)
        print(*web_rows(provider, *places, file=given.file, most=given.most), sep="\n")
    else:
        title, load = RUNTIMES[given.runtime]()
        for path in sorted(given.export.glob(given.file)):
            print(row(title, path, given.place, load), flush=True)


if __name__ == "__main__":
    main()
