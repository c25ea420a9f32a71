"""`busi-tune serve`: answers, refusals and leftovers."""

import base64
import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from busi_tune.cli import exit_code
from busi_tune.inference import open_export, predict, predict_files, predict_pictures
from image_folders import encoded
from serving import BOUNDARY, Served, ask, form, served
from small_export import CLASSES, small_model, without, write_export

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("serve") / "export", {"model.onnx": small_model()})


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(export: Path, temporary: Path) -> Iterator[Served]:
    with served(export, temporary=temporary) as found:
        yield found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise of several sizes and formats; the last file is truncated."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    for number, suffix in enumerate(("png", "jpg", "tif", "bmp", "webp", "png", "png")):
        height = 40 if number % 2 else 61
        pixels = generator.integers(0, 256, (height, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"scan {number}.{suffix}")
    (folder / "scan 7.png").write_bytes((folder / "scan 6.png").read_bytes()[:500])
    return sorted(folder.iterdir())


def content(paths: list[Path]) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in paths]


def test_answers_are_those_of_predict(server: Served, export: Path, pictures: list[Path]) -> None:
    status, _, answers = ask(server.url, form(content(pictures)))
    assert status == 200
    expected = [found.to_entry(CLASSES) for found in predict(export, pictures)]
    assert len(answers["predictions"]) == len(expected) == 8
    for found, entry, path in zip(answers["predictions"], expected, pictures, strict=True):
        assert found["path"] == path.name
        assert found.get("probabilities") == pytest.approx(entry.get("probabilities"), abs=1e-6)
        for key in ("predicted", "malignant", "warning", "error"):
            assert found.get(key) == entry.get(key)
    assert "warning" in answers["predictions"][0]
    assert "damaged" in answers["predictions"][-1]["error"]


def test_pictures_from_memory_are_answered_as_files_are(export: Path, pictures: list[Path]) -> None:
    classifier = open_export(export)
    named = [(str(path), path.read_bytes()) for path in pictures]
    assert predict_pictures(classifier, named) == list(predict_files(classifier, pictures))


def test_many_at_once_get_each_its_own_answer(server: Served, export: Path, pictures: list[Path]) -> None:
    alone = {path.name: found for path, found in zip(pictures, predict(export, pictures), strict=True)}

    def one(path: Path) -> None:
        _, _, answers = ask(server.url, form(content([path])), "/rows")
        (entry,) = answers["predictions"]
        found = alone[path.name]
        assert entry["path"] == path.name
        assert list(entry.get("probabilities", {}).values()) == pytest.approx(found.probabilities, abs=1e-6)

    with ThreadPoolExecutor(32) as pool:
        assert len(list(pool.map(one, pictures * 16))) == 128


def test_what_is_refused_gets_a_sentence(server: Served, pictures: list[Path]) -> None:
    whole = form(content(pictures[:2]))
    text = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"\r\n\r\nabc\r\n--{BOUNDARY}--\r\n'.encode()
    empty = f"--{BOUNDARY}--\r\n".encode()
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (b"", {}, 400, "ends before its last boundary"),
        (empty, {}, 400, "holds no file"),
        (whole[:-60], {}, 400, "ends before its last boundary"),
        (text, {}, 400, "'x' holds text, not a file"),
        (b"nonsense", {}, 400, "cannot be read"),
        (whole, {"Content_Type": "multipart/form-data"}, 400, "Missing boundary"),
        (b"{}", {"Content_Type": "application/json"}, 415, "not 'application/json'"),
        (form([("a.png", b"")] * 65), {}, 400, "Maximum number of files is 64"),
        (form([("a.bin", bytes(65 * MEGABYTE))]), {}, 413, "larger than the 64 MB"),
        (form([("notes.txt", b"no picture")]), {}, 422, "notes.txt: not a PNG"),
        (form([("none.png", b"")]), {}, 422, "none.png: empty"),
        (whole, {"Sec_Fetch_Site": "cross-site"}, 403, "Requests from pages of other sites"),
    ]
    for body, headers, status, words in cases:
        found, _, answer = ask(server.url, body, **headers)
        assert (found, list(answer)) == (status, ["error"]), answer
        assert words in answer["error"]
        assert answer["error"].endswith(".")
    for path in ("/nothing", "/static/nothing", "/static/../server.py", "/predict"):
        found, _, answer = ask(server.url, path=path)
        assert found == (405 if path == "/predict" else 404)
        assert path.partition("/..")[0] in answer["error"]
    # The server still answers.
    assert ask(server.url, whole)[0] == 200


def test_a_page_elsewhere_that_calls_this_host_its_own_is_refused(server: Served, pictures: list[Path]) -> None:
    for host, status in (("evil.example", 400), ("evil.example:80", 400), ("localhost:9", 200), ("127.0.0.1", 200)):
        assert ask(server.url, path="/", Host=host)[0] == status
        assert ask(server.url, form(content(pictures[:1])), Host=host)[0] == status


def test_nothing_is_stored(server: Served, temporary: Path) -> None:
    side = 2400
    noise = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    large = encoded(Image.fromarray(noise), "PNG")
    assert len(large) > 5 * MEGABYTE
    written = f"/proc/{server.process.pid}/io"

    def bytes_written() -> int:
        lines = Path(written).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))

    before = bytes_written() if Path(written).exists() else 0
    assert ask(server.url, form([("large.png", large)] * 3))[0] == 200
    assert list(temporary.iterdir()) == []
    if Path(written).exists():
        assert bytes_written() - before < MEGABYTE


def test_answers_and_refusals_are_as_the_openapi_document_says(server: Served, pictures: list[Path]) -> None:
    status, _, document = ask(server.url, path="/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    responses = document["paths"]["/predict"]["post"]["responses"]
    bodies = {"200": form(content(pictures)), "400": b"", "422": form([("a", b"")])}
    for expected, body in bodies.items():
        found, _, answer = ask(server.url, body)
        assert str(found) == expected
        schema = responses[expected]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, {**schema, "components": document["components"]})
    page = ask(server.url, path="/docs")[2]
    assert all(f"<td>{status}</td>" in page for status in responses)


def test_overlays_are_answered_on_request(pictures: list[Path], tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", {"model.onnx": small_model(maps=True)})
    with served(export) as server:
        document = ask(server.url, path="/openapi.json")[2]
        schema = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        expected = list(predict(export, pictures, explain=True))
        for path in ("/predict?explain=true", "/rows?explain=true"):
            status, _, answers = ask(server.url, form(content(pictures)), path)
            assert status == 200
            jsonschema.validate(answers, {**schema, "components": document["components"]})
            for answer, found in zip(answers["predictions"], expected, strict=True):
                assert ("overlay_png" in answer) == ("error" not in answer)
                if found.explanation is not None:
                    drawn = Image.open(io.BytesIO(base64.b64decode(answer["overlay_png"])))
                    assert (drawn.format, drawn.size) == ("PNG", found.explanation.picture().size)
        plain = ask(server.url, form(content(pictures)), "/predict?explain=false")[2]
        assert plain == ask(server.url, form(content(pictures)))[2]
        assert "overlay_png" not in json.dumps(plain)
        assert ask(server.url, form(content(pictures)), "/predict?explain=maybe")[0] == 400
        (parameter,) = document["paths"]["/predict"]["post"]["parameters"]
        assert (parameter["name"], parameter["in"]) == ("explain", "query")
        assert "?explain=true" in ask(server.url, path="/docs")[2]
        assert '"explains": true' in ask(server.url, path="/")[2]


def test_a_model_without_maps_refuses_to_explain(server: Served, pictures: list[Path]) -> None:
    status, _, answer = ask(server.url, form(content(pictures[:1])), "/predict?explain=true")
    assert (status, answer["error"]) == (
        400,
        "model.onnx has no output cam to explain its predictions with; serve a model.onnx that `busi-tune export "
        "--cam` made, or leave out explain.",
    )
    assert '"explains": false' in ask(server.url, path="/")[2]


def test_names_from_elsewhere_are_escaped(tmp_path: Path) -> None:
    classes = ["<script>alert(1)</script>", 'a "quoted" class', "normal"]
    model = small_model(without("classes", "operating_point") | {"classes": json.dumps(classes)})
    export = write_export(tmp_path / "<b>export", {"model.onnx": model})
    (export / "README.md").write_text("# Card\n\n<script>alert(2)</script>\n\n[link](javascript:alert(3))\n")
    with served(export) as server:
        page = ask(server.url, path="/")[2]
        name = "<img src=x onerror=alert(4)>.png"
        _, headers, answers = ask(server.url, form([(name, encoded(Image.new("L", (9, 9)), "PNG"))]))
    assert page.count("<script") == 2
    assert "<b>" not in page
    assert "javascript:" not in page.replace("[link](javascript:alert(3))", "")
    assert "README.md has changed since it was certified" in page
    assert answers["predictions"][0]["path"] == name
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "script-src 'self'" in headers["Content-Security-Policy"]


def test_ctrl_c_ends_it(export: Path) -> None:
    with served(export) as server:
        server.process.send_signal(signal.SIGINT)
        _, error = server.process.communicate(timeout=60)
        assert (server.process.returncode, error) == (
            130,
            "Interrupted. The server has stopped, and nothing was stored.\n",
        )


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("0.0.0.0", "no password"),  # noqa: S104 - for some milliseconds
        ("localhost", ""),
    ],
)
def test_an_address_of_the_network_is_warned_of(host: str, words: str, export: Path) -> None:
    with served(export, "--host", host) as server:
        assert ask(server.url, path="/", Host="a-name-of-this-machine" if words else "127.0.0.1")[0] == 200
        server.process.send_signal(signal.SIGINT)
        _, error = server.process.communicate(timeout=60)
    assert (words in error) if words else error.startswith("Interrupted.")


def test_an_address_that_cannot_be_had_is_one_sentence(
    server: Served, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = server.url.rpartition(":")[2]
    for options, words in (
        (["--port", taken], f"127.0.0.1, port {taken} cannot be listened on"),
        (["--host", "192.0.2.1"], "192.0.2.1, port 8000 cannot be listened on"),
        (["--host", "no such host"], "name another --host"),
    ):
        assert exit_code(["serve", str(export), *options]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert exit_code(["serve", str(export / "nothing")]) == 1


def test_without_the_extra_the_command_says_what_to_install(export: Path) -> None:
    script = "import sys; sys.modules['uvicorn'] = None; from busi_tune.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", str(export)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "busi-tune: This command needs uvicorn, which is not installed; pip install '/path/to/busi-tune[serve]' "
        "installs all it takes.\n"
    )


def test_predict_imports_nothing_of_it(export: Path, pictures: list[Path]) -> None:
    heavy = ("starlette", "uvicorn", "anyio", "python_multipart", "jinja2", "busi_tune.serve", "asyncio")
    for arguments in (["predict", str(export), str(pictures[0])], ["verify", "nothing"], ["--help"]):
        script = f"import sys; from busi_tune.cli import exit_code; exit_code({arguments});"
        script += f"print([m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
