"""`busi-tune predict`: one answer for each file, in order and in every format; a bad file does not stop the rest."""

import codecs
import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from busi_tune import files, images
from busi_tune.cli import exit_code
from busi_tune.errors import BusiTuneError, ConfigError, FileError
from busi_tune.inference import open_export, predict, predict_files
from busi_tune.inference.classifier import OPTIMISATION, Optimisation
from busi_tune.inference.inputs import image_paths
from small_export import CLASSES, SIZE, small_model, without, write_export

COLUMNS = [f"p_{name}" for name in CLASSES]
GREY, COLOUR, LARGE, OTHER = "grey.png", "colour.png", "large.png", "other.png"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of three models: for images of any size, for one size, and one without guard and operating point."""
    models = {
        "model.onnx": small_model(),
        f"model-{SIZE}.onnx": small_model(side=SIZE),
        "model-plain.onnx": small_model(without("guard", "operating_point")),
    }
    return write_export(tmp_path_factory.mktemp("small") / "export", models)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of three sizes, two files that are not images, a mask and a subfolder."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)

    def save(name: str, height: int, width: int, *, grey: bool = True) -> None:
        pixels = generator.integers(0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)

    (folder / "below").mkdir()
    for number in range(9):
        save(f"below/{number}.png", *((30, 40) if number % 2 else (25, 25)))
    save(GREY, 30, 40)
    save(f"{GREY[:4]}_mask.png", 30, 40)
    save(COLOUR, 30, 40, grey=False)
    save(LARGE, 20, 1500)
    (folder / "hello.png").write_bytes(b"hello\n")
    (folder / "short.png").write_bytes((folder / GREY).read_bytes()[:300])
    return folder


def predict_json(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    """The parsed output of `predict --json`."""
    assert exit_code(["predict", *arguments, "--json"]) == code
    answers = json.loads(capsys.readouterr().out)
    assert isinstance(answers, list)
    return answers


def give_stdin(text: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `text` on stdin."""
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_every_image_gets_the_answer_it_gets_alone(batch_size: int, export: Path, pictures: Path) -> None:
    classifier = open_export(export)
    paths = list(image_paths([str(pictures / "below"), str(pictures)]))
    given = list(predict_files(classifier, paths, batch_size))
    assert [found.path for found in given] == [str(path) for path in paths]
    for found in given:
        path = Path(found.path)
        if path.name in {"hello.png", "short.png"}:
            assert found.error
            continue
        (row,) = classifier.run(images.read(path, SIZE)[None]).probabilities.tolist()
        np.testing.assert_allclose(found.probabilities, row, rtol=1e-5, atol=1e-7)
        assert found.predicted == CLASSES[int(np.argmax(row))]
        assert found.malignant == (row[1] >= 0.3)
        assert found.warning == ("colour where the training data is grey" if path.name == COLOUR else "")


def test_a_model_for_ready_images_gets_them_ready(export: Path, pictures: Path) -> None:
    classifier = open_export(export / f"model-{SIZE}.onnx")
    (found,) = predict_files(classifier, [pictures / GREY])
    row = classifier.run(images.read(pictures / GREY, SIZE)[None]).probabilities[0]
    np.testing.assert_allclose(found.probabilities, row, rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "level", "batch_size"), [(1, "none", 1), (8, "none", 1), (9, "all", 8), (14, "all", 8)]
)
def test_few_images_are_answered_without_optimisation(
    count: int, level: Optimisation, batch_size: int, export: Path, pictures: Path
) -> None:
    paths = list(image_paths([str(pictures)]))[:count]
    assert len(paths) == count
    predictions = predict(export, paths)
    options = predictions.classifier.session.get_session_options()
    assert options.graph_optimization_level == OPTIMISATION[level]
    expected = list(predict_files(open_export(export, optimisation=level), paths, batch_size))
    assert next(iter(predictions)) == expected[0]
    assert list(predictions) == expected[1:]
    assert list(predictions) == []


def test_paths_are_taken_as_predictions_are_asked_for(export: Path, pictures: Path) -> None:
    waiting = iter([pictures / GREY] * 100)
    predictions = iter(predict(export, waiting, batch_size=2))
    assert length_hint(waiting) == 100 - 9
    assert len(list(islice(predictions, 50))) == 50
    # Two batches of two images each are decoded in advance.
    assert 40 < length_hint(waiting) < 50


def test_predict_takes_what_open_export_takes(export: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.onnx").write_bytes((export / "model-plain.onnx").read_bytes())
    with pytest.raises(BusiTuneError, match="has no certificate"):
        predict(tmp_path / "elsewhere.onnx", [pictures / GREY])
    with pytest.raises(ConfigError, match="--provider must be one that"):
        predict(export, [pictures / GREY], provider="tpu")
    (found,) = predict(tmp_path / "elsewhere.onnx", [pictures / GREY], allow_unverified=True, threads=1)
    assert found.to_entry(CLASSES) == {
        "schema": "busi-tune.prediction/2",
        "path": str(pictures / GREY),
        "predicted": found.predicted,
        "probabilities": dict(zip(CLASSES, found.probabilities, strict=True)),
    }
    assert list(predict(export, [])) == []


def test_json(export: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [COLOUR, "hello.png", GREY]
    colour, hello, grey = predict_json([str(export), *(str(pictures / name) for name in names)], capsys, code=1)
    assert list(colour) == ["schema", "path", "predicted", "probabilities", "malignant", "warning"]
    assert list(grey) == ["schema", "path", "predicted", "probabilities", "malignant"]
    assert list(grey["probabilities"]) == CLASSES
    reason = "not a PNG, JPEG, BMP, TIFF, WEBP image"
    assert hello == {"schema": "busi-tune.prediction/2", "path": str(pictures / "hello.png"), "error": reason}
    plain = predict_json([str(export / "model-plain.onnx"), str(pictures / COLOUR)], capsys)
    assert [list(entry) for entry in plain] == [["schema", "path", "predicted", "probabilities"]]


def test_json_lines(export: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = predict_json([str(export), str(pictures)], capsys, code=1)
    assert exit_code(["predict", str(export), str(pictures), "--jsonl"]) == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected


def test_csv(export: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "answers.csv"
    given = predict_json([str(export), str(pictures), "--csv", str(target)], capsys, code=1)
    with target.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["path", "predicted", *COLUMNS, "malignant", "warning", "error", "model", "schema"]
    assert len(rows) == len(given) == 14
    for row, entry in zip(rows, given, strict=True):
        assert [row["path"], row["predicted"]] == [entry["path"], entry.get("predicted", "")]
        assert row["model"] == files.sha256(export / "model.onnx")[:16]
        assert row["schema"] == entry["schema"]
        assert [row["warning"], row["error"]] == [entry.get("warning", ""), entry.get("error", "")]
        assert row["malignant"] == str(entry.get("malignant", ""))
        expected = entry.get("probabilities", {})
        assert [row[column] for column in COLUMNS] == [repr(expected[n]) if expected else "" for n in CLASSES]
    assert list(tmp_path.iterdir()) == [target]


def test_a_csv_has_the_columns_that_the_model_has(export: Path, pictures: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.csv"
    assert exit_code(["predict", str(export / "model-plain.onnx"), str(pictures / GREY), "--csv", str(target)]) == 0
    assert target.read_text().splitlines()[0] == ",".join(["path", "predicted", *COLUMNS, "error", "model", "schema"])


def test_a_table_by_default(
    export: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    names = [COLOUR, "hello.png", "below/1.png"]
    rows = [list(entry.get("probabilities", {}).values()) for entry in predict_json([str(export), *names], capsys, 1)]
    assert exit_code(["predict", str(export), *names]) == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    header, rule, *lines = shown.out.splitlines()
    assert header == " predicted  p(benign)  p(malignant)  p(normal)  malignant  file"
    assert rule == " " + "─" * (len(header) - 1)
    ends = [
        f"{COLOUR}: warning: colour where the training data is grey",
        "hello.png: not a PNG, JPEG, BMP, TIFF, WEBP image",
        "below/1.png",
    ]
    for line, row, end in zip(lines, rows, ends, strict=True):
        assert line[header.index("file") :] == end
        words = line[: header.index("file")].split()
        assert words == (
            [CLASSES[int(np.argmax(row))], *(f"{p:.4f}" for p in row), "yes" if row[1] >= 0.3 else "no"] if row else []
        )


def test_a_name_cannot_command_the_terminal(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: Path
) -> None:
    path = tmp_path / "a\x1b[2J\n\x7f.png"
    path.write_bytes((pictures / GREY).read_bytes())
    assert exit_code(["predict", str(export), str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines()[-1].endswith("a\\x1b[2J\\n\\x7f.png")
    (entry,) = predict_json([str(export), str(path)], capsys)
    assert entry["path"] == str(path)
    assert exit_code(["predict", str(export), str(path), "--jsonl"]) == 0
    assert capsys.readouterr().out.rstrip("\n").isprintable()
    # The error message is printable, too.
    assert exit_code(["predict", str(path), str(path)]) == 1
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_a_list_on_stdin(
    export: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures)
    name = os.fsencode("umlaut-") + b"\xfc.png"
    give_stdin(f"{GREY}\r\n\nmissing.png\nbelow\n".encode() + name + b"\n" + COLOUR.encode(), monkeypatch)
    given = predict_json([str(export), "-"], capsys, code=1)
    assert [entry["path"] for entry in given] == [GREY, "missing.png", "below", os.fsdecode(name), COLOUR]
    missing = "no such file or directory"
    assert [entry.get("error") for entry in given] == [None, missing, "is a directory", missing, None]


@pytest.mark.parametrize(
    "given",
    [
        codecs.BOM_UTF8 + "grey.png\r\nümlaut.png\n".encode(),
        codecs.BOM_UTF16_LE + "grey.png\r\nümlaut.png\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "grey.png\nümlaut.png".encode("utf-16-be"),
        b"grey.png\0" + "ümlaut.png\0".encode(),
        b"grey.png\0" + "ümlaut.png".encode(),
    ],
    ids=["UTF-8 with a mark", "UTF-16", "UTF-16, big end first", "NUL", "NUL, not after the last"],
)
def test_lists_as_other_programs_write_them(given: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(given, monkeypatch)
    assert list(image_paths(["-"])) == [Path(GREY), Path("ümlaut.png")]


def test_a_list_with_nul_keeps_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(b"two\nlines.png\0 end\r\0\0", monkeypatch)
    assert list(image_paths(["-"])) == [Path("two\nlines.png"), Path(" end\r")]


def test_a_long_list_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers names across the borders of parts, and input without line ends."""
    names = [f"{'x' * (number % 100)}{number}.png" for number in range(5000)]
    give_stdin("\n".join(names), monkeypatch)
    assert list(image_paths(["-"])) == [Path(name) for name in names]
    give_stdin(b"x" * 3_000_000, monkeypatch)
    with pytest.raises(FileError, match="1,000,000 bytes without a line end"):
        image_paths(["-"])


def test_an_argument_that_is_no_image_is_a_row(
    export: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stdin such a path is a row, too. A pipe is never opened, because it may never end."""
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "empty").mkdir()
    special = "a pipe, a socket or a device, not a file"
    expected = {
        "missing.png": "no such file or directory",
        "*.tiff": "no such file or directory",
        "empty": "is a directory without images",
        "pipe.png": special,
        "socket.png": special,
        "loop.png": "damaged or unreadable ([Errno 40] Too many levels of symbolic links: '{path}')",
        "x" * 300: "damaged or unreadable ([Errno 36] File name too long: '{path}')",
    }
    paths = [str(tmp_path / name) for name in expected]
    found = predict_json([str(export), *paths, "/dev/zero", str(pictures / GREY)], capsys, code=1)
    assert [entry["path"] for entry in found] == [*paths, "/dev/zero", str(pictures / GREY)]
    reasons = [reason.format(path=path) for path, reason in zip(paths, expected.values(), strict=True)]
    assert [entry.get("error") for entry in found] == [*reasons, special, None]


def test_a_csv_goes_straight_into_a_pipe(export: Path, pictures: Path, tmp_path: Path) -> None:
    """The shell form `--csv >(command)` gives such a pipe."""
    pipe, target = tmp_path / "pipe.csv", tmp_path / "answers.csv"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        heard = pool.submit(pipe.read_text)
        assert exit_code(["predict", str(export), str(pictures), "--csv", str(pipe)]) == 1
        text = heard.result(timeout=60)
    assert pipe.is_fifo()
    assert exit_code(["predict", str(export), str(pictures), "--csv", str(target)]) == 1
    assert text == target.read_text()


@pytest.mark.parametrize("sink", ["file", "pipe"])
def test_a_csv_on_stdout_takes_the_place_of_the_table(sink: str, export: Path, pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "busi_tune", "predict", str(export), str(pictures / GREY), "--csv"]
    subprocess.run([*command, str(tmp_path / "answers.csv")], check=True, stdout=subprocess.DEVNULL)
    expected = (tmp_path / "answers.csv").read_text()
    if sink == "pipe":
        assert subprocess.run([*command, "/dev/stdout"], check=True, capture_output=True, text=True).stdout == expected
        return
    out = tmp_path / "out"
    out.write_text("before\n")
    with out.open("a") as file:
        subprocess.run([*command, "/dev/stdout"], check=True, stdout=file)
    assert out.read_text() == f"before\n{expected}"


def test_a_csv_through_a_link_and_over_one_that_a_spreadsheet_saved(
    export: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "answers.csv", tmp_path / "link.csv"
    link.symlink_to(target)
    command = ["predict", str(export), str(pictures / GREY), "--csv", str(link), "--overwrite"]
    assert exit_code(command) == 0
    expected = target.read_text()
    saved = [
        codecs.BOM_UTF8 + expected.encode(),
        codecs.BOM_UTF8 + expected.replace(",", ";").encode(),
        expected.replace(",", "\t").encode("utf-16"),
        b'"path","predicted"\r\n',
        b"",
    ]
    for content in saved:
        target.write_bytes(content)
        assert exit_code(command) == 0
        assert link.is_symlink()
        assert target.read_text() == expected
    for content in (b"pathology,class\n", b"path", b"image;path;class\n"):
        target.write_bytes(content)
        capsys.readouterr()
        assert exit_code(command) == 1
        assert "is not a table of predictions, so --overwrite does not replace it" in capsys.readouterr().err
        assert target.read_bytes() == content


def test_two_commands_and_one_csv(export: Path, pictures: Path, tmp_path: Path) -> None:
    """The second command is refused while the first writes. The final file is complete and from the first."""
    target = tmp_path / "answers.csv"
    names = [str(pictures / "below")] * 20
    read, write = os.pipe()
    command = [sys.executable, "-m", "busi_tune", "predict", str(export), "-", "--csv", str(target), "--overwrite"]
    with subprocess.Popen(command, stdin=read, stdout=subprocess.DEVNULL) as first:
        os.write(write, f"{pictures / GREY}\n".encode() * 40)
        while not Path(f"{target}.partial").exists():
            time.sleep(0.01)
        second = subprocess.run(command, input="x.png", capture_output=True, text=True, check=False)
        os.write(write, "".join(f"{path}\n" for path in image_paths(names)).encode())
        os.close(write)
    os.close(read)
    assert first.returncode == 0
    assert second.stderr == f"busi-tune: {target} is being written by another command; wait until it has ended.\n"
    assert second.returncode == 1
    assert answered(target) == [str(pictures / GREY)] * 40 + [str(path) for path in image_paths(names)]
    assert list(tmp_path.iterdir()) == [target]


def answered(table: Path) -> list[str]:
    """The paths in a table of answers, in order."""
    with table.open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_table_is_kept_and_resumed(
    end: signal.Signals, export: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever ends a command, the resumed command gives the same bytes as one without interruption."""
    target, partial = tmp_path / "answers.csv", tmp_path / "answers.csv.partial"
    names = "".join(f"{path}\n" for path in [*image_paths([str(pictures)]), pictures / "no\rimage.png"] * 20)
    listed = tmp_path / "names.txt"
    listed.write_bytes(names.encode())
    options = ["--list", str(listed), "--csv", str(target)]
    whole = ["predict", str(export), "--list", str(listed), "--csv", str(tmp_path / "whole.csv")]
    assert exit_code(whole) == 1
    # In a shell's background job, a child process would ignore Ctrl-C.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from busi_tune.__main__ import main"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; main()", "predict", str(export), "-", "--csv", str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as first:
        assert first.stdin is not None
        # The list is incomplete, so that the command cannot end by itself.
        first.stdin.write(names.encode()[: len(names) // 2])
        first.stdin.flush()
        while not partial.exists() or len(partial.read_bytes().splitlines()) < 20:
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(end)
        assert first.wait() in (130, -signal.SIGKILL)
        if end == signal.SIGINT:
            assert first.stderr is not None
            assert b"FILE.csv.partial keeps the rows, and --resume continues after them" in first.stderr.read()
    assert not target.exists()
    with partial.open("ab") as file:
        # A row that was cut off within a quoted name.
        file.write(b'"/a\r\nb')
    capsys.readouterr()
    assert exit_code(["predict", str(export), *options]) == 1
    assert "holds the predictions of an interrupted command; add --resume" in capsys.readouterr().err
    assert exit_code(["predict", str(export), *options, "--resume"]) == 1
    assert target.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


def test_a_table_is_resumed_with_the_same_images_and_model_alone(
    export: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, partial = tmp_path / "answers.csv", tmp_path / "answers.csv.partial"
    grey, colour = str(pictures / GREY), str(pictures / COLOUR)
    assert exit_code(["predict", str(export), grey, colour, "--csv", str(target)]) == 0
    expected = target.read_bytes()
    target.replace(partial)
    resume = ["--csv", str(target), "--resume"]
    for names, reason in (
        ([colour], f"has a row for {grey} where the command names {colour}; name the same images"),
        ([grey], f"has a row for {colour} where the command names no more images"),
    ):
        capsys.readouterr()
        assert exit_code(["predict", str(export), *names, *resume]) == 1
        assert reason in capsys.readouterr().err
    assert exit_code(["predict", str(export / f"model-{SIZE}.onnx"), grey, colour, grey, *resume]) == 1
    assert "holds predictions of the model" in capsys.readouterr().err
    assert exit_code(["predict", str(export / "model-plain.onnx"), grey, colour, grey, *resume]) == 1
    assert partial.read_bytes() == expected
    assert exit_code(["predict", str(export), grey, colour, *resume]) == 0
    assert target.read_bytes() == expected


def test_a_table_is_replaced_or_added_to_on_request(
    export: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "answers.csv"
    grey, colour = str(pictures / GREY), str(pictures / COLOUR)
    csv_of = ["--csv", str(target)]
    assert exit_code(["predict", str(export), grey, *csv_of]) == 0
    first = target.read_text()
    assert exit_code(["predict", str(export), colour, *csv_of]) == 1
    assert f"{target} exists; add --overwrite to replace it, --append to add to it" in capsys.readouterr().err
    assert target.read_text() == first
    # Some editors save the file without the last line end.
    target.write_text(first.rstrip("\n"))
    assert exit_code(["predict", str(export), colour, *csv_of, "--append"]) == 0
    assert answered(target) == [grey, colour]
    assert target.read_text().startswith(first)
    assert exit_code(["predict", str(export / "model-plain.onnx"), colour, *csv_of, "--append"]) == 1
    assert "has the columns" in capsys.readouterr().err
    assert exit_code(["predict", str(export), colour, *csv_of, "--overwrite"]) == 0
    assert answered(target) == [colour]
    assert list(tmp_path.iterdir()) == [target]


def test_a_list_by_name_and_names_with_line_ends(export: Path, pictures: Path, tmp_path: Path) -> None:
    odd = tmp_path / "two\nlines.png"
    shutil.copy(pictures / GREY, odd)
    listed = tmp_path / "names"
    listed.write_bytes(os.fsencode(odd) + b"\0")
    target = tmp_path / "answers.csv"
    arguments = ["predict", str(export), str(pictures / COLOUR), "--list", str(listed), "-0", "--csv", str(target)]
    assert exit_code(arguments) == 0
    assert answered(target) == [str(pictures / COLOUR), str(odd)]
    assert list(image_paths([], [listed, listed], nul=True)) == [odd, odd]
    listed.write_bytes(codecs.BOM_UTF16_LE + "two\nlines.png\0".encode("utf-16-le"))
    assert list(image_paths([], [listed], nul=True)) == [Path("two\nlines.png")]


@pytest.mark.parametrize("form", [[], ["--jsonl"], ["--csv", "-"], ["--csv", "/dev/stdout"]])
def test_a_closed_pipe_ends_the_command_quietly(form: list[str], export: Path, pictures: Path, tmp_path: Path) -> None:
    """The exit code is that of a program that SIGPIPE ended."""
    listed = tmp_path / "names"
    listed.write_text(f"{pictures / GREY}\n" * 5000)
    command = [sys.executable, "-m", "busi_tune", "predict", str(export), "--list", str(listed), *form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        assert done.stdout.readline()
        done.stdout.close()
        assert done.stderr.read() == ""
        assert done.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(("encoding", "character"), [("utf-8", "─"), ("latin-1", "-"), ("ascii", "-")])
def test_a_terminal_that_cannot_show_lines_gets_others(
    encoding: str, character: str, export: Path, pictures: Path
) -> None:
    command = [sys.executable, "-m", "busi_tune", "predict", str(export), str(pictures / GREY)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, check=True, capture_output=True, env=environment).stdout.decode(encoding)
    assert set(done.splitlines()[1]) == {" ", character}


def test_folders_and_files_keep_their_order(pictures: Path) -> None:
    found = list(image_paths([str(pictures / OTHER.replace("other", "grey")), str(pictures), str(pictures / GREY)]))
    assert found[0] == found[-1] == pictures / GREY
    assert found[1:-1] == [path for path in images.walk(pictures) if not images.is_mask(path)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", [COLOUR, GREY, "hello.png", LARGE, "short.png"]),
        ("gr*", [GREY]),
        ("below/[0-2].png", ["below/0.png", "below/1.png", "below/2.png"]),
        ("**/1.png", ["below/1.png"]),
        ("bel*", [f"below/{number}.png" for number in range(9)]),
    ],
)
def test_patterns(pattern: str, expected: list[str], pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(image_paths([str(pictures / pattern)])) == [pictures / name for name in expected]
    monkeypatch.chdir(pictures)
    assert list(image_paths([pattern])) == [Path(name) for name in expected]


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "scan [1]*.png"
    path.write_bytes(b"x")
    assert list(image_paths([str(path)])) == [path]


def test_a_mask_is_taken_where_it_is_named(pictures: Path) -> None:
    mask = pictures / "grey_mask.png"
    assert list(image_paths([str(mask)])) == [mask]
    pattern = str(pictures / "*_mask.png")
    assert list(image_paths([pattern])) == [Path(pattern)]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["{empty}", "{image}"], 1, "holds no model.onnx"),
        (["{missing}", "{image}"], 1, "missing does not exist"),
        (
            ["{export}", "{image}", "--json", "--jsonl"],
            2,
            "--json and --jsonl would both print on stdout; remove one",
        ),
        (["{export}", "{image}", "--json", "--csv", "/dev/stdout"], 2, "--json and --csv /dev/stdout would both"),
        (["{export}", "{image}", "--jsonl", "--csv", "-"], 2, "--jsonl and --csv - would both"),
        (["/dev/null", "{image}", "--allow-unverified"], 1, "/dev/null is no file"),
        (["{export}", "-"], 1, "The list on stdin names no file"),
        (["{export}", "{image}", "--csv", "{empty}"], 1, "is a folder"),
        (["{export}", "{image}", "--csv", "{missing}/a.csv"], 1, "could not be written"),
        (
            ["{export}", "{image}", "--csv", "{image}", "--overwrite"],
            1,
            "is not a table of predictions, so --overwrite does not replace it",
        ),
        (["{export}", "{image}", "--provider", "tpu"], 2, "--provider must be one that"),
        (["{export}"], 2, "Missing argument 'IMAGE...': name images, or a list of them with --list."),
        (
            ["{export}", "{image}", "--csv", "a.csv", "--append", "--overwrite"],
            2,
            "--overwrite and --append contradict",
        ),
        (["{export}", "{image}", "--append"], 2, "--append needs a file; name it with --csv FILE.csv."),
        (["{export}", "{image}", "--csv", "-", "--resume"], 2, "--resume needs a file"),
        (["{export}", "{image}", "--csv", "{empty}/a.csv", "--resume"], 1, "there is nothing to continue"),
        (["{export}", "--list", "{missing}"], 1, "missing could not be read: No such file"),
        (["{export}", "--list", "/dev/null"], 1, "The list on /dev/null names no file"),
        (["{export}", "{image}", "--batch-size", "0"], 2, "--batch-size"),
        (["{export}", "{image}", "--threads", "-1"], 2, "--threads"),
        (["{image}", "{image}"], 1, "has no certificate"),
        (["{image}", "{image}", "--allow-unverified"], 1, "is not an ONNX file"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    code: int,
    reason: str,
    export: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    give_stdin("\n", monkeypatch)
    image, missing = str(pictures / GREY), str(tmp_path / "missing")
    places = {"empty": str(tmp_path), "missing": missing, "export": str(export), "image": image}
    assert exit_code(["predict", *(argument.format(**places) for argument in arguments)]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert reason in shown.err
    assert len(shown.err.splitlines()) == 1 or code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_csv_that_cannot_be_written_to_its_end_keeps_its_answers(
    export: Path, pictures: Path, tmp_path: Path
) -> None:
    code = (
        "import resource, sys; from busi_tune.cli import exit_code;"
        "before = resource.getrlimit(resource.RLIMIT_FSIZE);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1])); code = exit_code(sys.argv[1:]);"
        # At its end, a measurement of coverage writes a larger file.
        "resource.setrlimit(resource.RLIMIT_FSIZE, before); sys.exit(code)"
    )
    arguments = ["predict", str(export), str(pictures), "--csv", str(tmp_path / "a.csv")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"busi-tune: {tmp_path / 'a.csv'} could not be written: File too large; ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv.partial"]
    assert exit_code([*arguments, "--resume"]) == 1
    assert answered(tmp_path / "a.csv") == [str(path) for path in image_paths([str(pictures)])]


PREDICT = """
import sys
from itertools import islice
from operator import length_hint
from pathlib import Path
from busi_tune.cli import exit_code
from busi_tune.cli.extras import TRAINING
code = exit_code(["predict", *sys.argv[1:]])
heavy = TRAINING & set(sys.modules)
status = Path("/proc/self/status")
# Not `ru_maxrss`, which begins with what the process that started us has.
peak = status.read_text().partition("VmHWM:")[2].split()[0] if status.exists() else 0
print(peak, file=sys.stderr)
sys.exit(f"loaded {heavy}" if heavy else code)
"""


def in_a_fresh_interpreter(arguments: list[str], given: str = "") -> tuple[list[str], int]:
    """The output lines of predict, and its peak memory in kB (0 outside Linux). No training package may be loaded."""
    command = [sys.executable, "-c", PREDICT, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), int(done.stderr)


def test_nothing_heavy_is_loaded(export: Path, pictures: Path) -> None:
    (line,), _ = in_a_fresh_interpreter([str(export), str(pictures / GREY), "--jsonl"])
    assert json.loads(line)["predicted"] in CLASSES


def test_memory_does_not_grow_with_the_number_of_files(export: Path, pictures: Path) -> None:
    few, many = 200, 6000
    arguments = [str(export), "-", "--jsonl", "--threads", "1"]
    peaks = []
    for count in (few, many):
        names = [str(pictures / "below" / f"{number % 9}.png") for number in range(count)]
        lines, peak = in_a_fresh_interpreter(arguments, "\n".join(names))
        assert [json.loads(line)["path"] for line in lines] == names
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 8000


@pytest.mark.parametrize("name", ["é 模型".encode(), b"caf\xe9"])
def test_an_export_is_found_under_any_name_in_any_locale(
    name: bytes, export: Path, pictures: Path, tmp_path: Path
) -> None:
    """The name is given as bytes, because Python in the C locale does not decode it as UTF-8."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    shutil.copytree(export, place)
    own = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = subprocess.run(
        [sys.executable, "-m", "busi_tune", "predict", os.fsencode(place), str(pictures), "--json"],
        env={**os.environ, **own},
        capture_output=True,
        check=False,
    )
    # Two of the files are not images.
    assert told.returncode == 1, told.stderr.decode(errors="replace")
    answers = json.loads(told.stdout)
    assert sum("predicted" in answer for answer in answers) == 12
