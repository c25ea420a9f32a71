"""An export in other runtimes: which ones run it, and how far their answers differ from this ONNX Runtime's.

    python tests/benchmarks/runtimes.py EXPORT --prepare DIR
    OTHER_PYTHON tests/benchmarks/runtimes.py EXPORT --with DIR --runtime NAME

The first command writes pictures and the reference answers. The second needs only numpy and the runtime, and prints a
row of the table for each model file. NAME is onnxruntime, openvino, openvino-f32, opencv, reference, onnxslim or
onnxsim.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Answers = dict[str, Array]
# A runtime's name with its version, and its loader: from the path of a model to a function from input to outputs.
Runtime = tuple[str, Callable[[str], Callable[[Array], Answers]]]
NAMES = ("logits", "pixels")
SIZES = ((64, 64), (101, 77), (300, 411), (37, 90), (500, 333), (256, 256))


def onnxruntime_of(data: bytes | str) -> Callable[[Array], Answers]:
    """A function that runs the model in a session on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    outputs = [entry.name for entry in session.get_outputs()]
    return lambda given: dict(zip(outputs, session.run(None, {name: given}), strict=True))


def runtime(name: str) -> Runtime:
    """The installed runtime of this name."""
    if name == "onnxruntime":
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__}", onnxruntime_of
    if name.startswith("openvino"):
        import openvino

        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": "f32"} if name.endswith("f32") else {}

        def load(path: str) -> Callable[[Array], Answers]:
            model = core.read_model(path)
            names = [output.get_any_name() for output in model.outputs]
            compiled = core.compile_model(model, "CPU", hints)
            return lambda given: {key: compiled([given])[place] for place, key in enumerate(names)}

        return f"OpenVINO {openvino.__version__.partition('-')[0]}{', f32' if hints else ', default'}", load
    if name == "opencv":
        import cv2

        def read(path: str) -> Callable[[Array], Answers]:
            network = cv2.dnn.readNetFromONNX(path)
            known = list(network.getUnconnectedOutLayersNames())

            def run(given: Array) -> Answers:
                network.setInput(given)
                return dict(zip(known, network.forward(known), strict=True))

            return run

        return f"OpenCV {cv2.__version__}", read
    import onnx

    if name == "reference":
        from onnx.reference import ReferenceEvaluator

        def evaluator(path: str) -> Callable[[Array], Answers]:
            found = ReferenceEvaluator(path)
            name = found.input_names[0]
            return lambda given: dict(zip(found.output_names, found.run(None, {name: given}), strict=True))

        return f"ReferenceEvaluator of onnx {onnx.__version__}", evaluator
    if name == "onnxslim":
        import onnxslim

        return f"onnxslim {onnxslim.__version__}", lambda path: onnxruntime_of(
            onnxslim.slim(onnx.load(path)).SerializeToString()
        )
    import onnxsim

    return f"onnxsim {onnxsim.__version__}", lambda path: onnxruntime_of(
        onnxsim.simplify(onnx.load(path))[0].SerializeToString()
    )


def prepare(export: Path, place: Path) -> None:
    """Writes inputs and the answers of this ONNX Runtime for each model file."""
    import onnxruntime

    noise = np.random.default_rng(0)
    for path in sorted(export.glob("*.onnx")):
        entry = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0]
        fixed = [side for side in entry.shape[1:] if isinstance(side, int) and side > 3]
        for number, size in enumerate(SIZES):
            if entry.type == "tensor(float)":
                given: Array = noise.normal(size=(1, 3, *fixed)).astype(np.float32)
            else:
                given = noise.integers(0, 256, (1, *(fixed or size), 3), dtype=np.uint8)
            found = onnxruntime_of(str(path))(given)
            kept = {name: found[name] for name in NAMES if name in found}
            np.savez(place / f"{path.name}.{number}.npz", given=given, **kept)  # type: ignore[arg-type]


def row(title: str, path: Path, place: Path, load: Callable[[str], Callable[[Array], Answers]]) -> str:
    """A table row: runtime, file, largest logit difference, changed answers, differently resized pictures."""
    worst, changed, pixels, count = 0.0, 0, 0, 0
    try:
        run = load(str(path))
        for case in sorted(place.glob(f"{path.name}.*.npz")):
            with np.load(case) as known:
                found = run(known["given"])
                worst = max(worst, float(np.abs(found["logits"] - known["logits"]).max()))
                changed += int((found["logits"].argmax(axis=1) != known["logits"].argmax(axis=1)).sum())
                if "pixels" in known and "pixels" in found:
                    pixels += int((found["pixels"] != known["pixels"]).any())
                count += 1
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises is its answer
        reason = " ".join(str(error).split())[-110:].replace("|", "/")
        return f"| {title} | {path.name} | no: {type(error).__name__} {reason} | | |"
    return f"| {title} | {path.name} | {worst:.1e} | {changed} of {count} | {pixels} of {count} |"


def main() -> None:
    """Prepares the inputs, or prints the rows of one runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--with", dest="place", type=Path)
    parser.add_argument("--runtime", default="onnxruntime")
    given = parser.parse_args()
    if given.prepare:
        given.prepare.mkdir(parents=True, exist_ok=True)
        prepare(given.export, given.prepare)
        return
    title, load = runtime(given.runtime)
    for path in sorted(given.export.glob("*.onnx")):
        print(row(title, path, given.place, load), flush=True)


if __name__ == "__main__":
    main()
