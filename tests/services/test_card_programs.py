"""The programs of the model card: without PyTorch and without this package, they predict like `predict`."""

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait

from busi_tune import images, pipeline
from busi_tune.export_options import ExportOptions
from busi_tune.inference import Prediction, open_export, predict_files
from busi_tune.progress import Silent
from chromium import chromium, complaints, requested
from exported import Exported, linked
from picture_files import png
from runtimes import served

pytest_plugins = ["exported"]


def install(command: Sequence[str | Path], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".splitlines()
        reason = next((line for line in said if "error" in line.lower()), f"exit code {done.returncode}")
        pytest.skip(f"{Path(command[0]).name} could not install what the program needs: {reason}")


def named(card: str, installer: str) -> list[str]:
    """The packages that the card's install commands name."""
    found = re.findall(rf"`{installer} install ([^`]+)`", card)
    assert found
    return " ".join(found).split()


def program(card: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", card, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def folder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with a threshold."""
    place = tmp_path_factory.mktemp("card") / "export"
    pipeline.export(exported.run, place, exported.data, Silent(), options=ExportOptions(sensitivity=0.8))
    return place


@pytest.fixture(scope="module")
def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def python(card: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python environment with only the packages from the card."""
    place = tmp_path_factory.mktemp("python")
    venv.create(place, with_pip=False, symlinks=True)
    program = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet", "--retries=1"]
    install([*pip, *named(card, "pip")], place)
    return program


@pytest.fixture(scope="module")
def node(card: str, folder: Path) -> Path:
    """Node.js, with the packages for it and for the browser from the card installed in the folder of the export."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("Node.js and npm are not both installed; install Node.js 20.9 or newer")
    # Without a package.json, npm searches the parent folders for one.
    (folder / "package.json").write_text("{}")
    options = [
        "--ignore-scripts",
        "--engine-strict",
        "--prefer-offline",
        "--fetch-retries=1",
        "--no-audit",
        "--no-fund",
    ]
    install([npm, "install", *options, *named(card, "npm")], folder)
    return Path(found)


@pytest.fixture(scope="module")
def compiled(card: str, folder: Path, python: Path) -> Path:
    """The C++ program, compiled with the card's command."""
    if shutil.which("g++") is None or not Path("/usr/include/opencv4/opencv2/imgcodecs.hpp").exists():
        pytest.skip("g++ and OpenCV are not both installed; apt-get install g++ libopencv-imgcodecs-dev")
    (folder / "classify.cpp").write_text(program(card, "cpp"))
    commands = program(card, "sh").replace("python3", str(python))
    install(["sh", "-ec", commands], folder)
    return folder / "classify"


def red_is_blue() -> bytes:
    """A colour profile that programs must ignore: sRGB with red and blue exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.fixture(scope="module")
def pictures(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of the data set, and images of other kinds and sizes."""
    place = tmp_path_factory.mktemp("pictures")
    with (exported.folder / "predictions.csv").open() as file:
        own = [exported.data / row["path"] for row in csv.DictReader(file)]
    colour = images.decode(own[0]).resize((301, 187))
    grey = colour.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6
    see_through = colour.convert("RGBA")
    see_through.putalpha(grey)
    colour.save(place / "colour.png")
    colour.resize((90, 333)).save(place / "tall picture.png")
    colour.resize((1, 1)).save(place / "dot.png")
    # Too large for the graph: `predict` resizes it first.
    colour.resize((1300, 700)).save(place / "large.png")
    grey.save(place / "grey.png")
    grey.save(place / "100%d.png", transparency=90)
    grey.convert("1").save(place / "black and white.png")
    colour.quantize(50).save(place / "palette.png")
    see_through.save(place / "see-through.png")
    see_through.convert("LA").save(place / "grey see-through.png")
    colour.save(place / "profile.png", icc_profile=red_is_blue())
    colour.save(place / "turned.jpg", exif=turned, icc_profile=red_is_blue())
    colour.save(place / "turned.png", exif=turned)
    colour.quantize(50).save(place / "palette with opacity.png", transparency=bytes(range(0, 250, 5)))
    for quality, subsampling in ((30, 2), (75, 1), (95, 0)):
        colour.save(place / f"colour-{quality}.jpg", quality=quality, subsampling=subsampling)
    colour.save(place / "progressive.jpg", progressive=True)
    grey.save(place / "grey.jpg")
    return own[:6] + sorted(place.iterdir())


@pytest.fixture(scope="module")
def expected(folder: Path, pictures: list[Path]) -> list[Prediction]:
    """The predictions of `predict`."""
    answers = list(predict_files(open_export(folder), pictures))
    assert not [answer for answer in answers if answer.error]
    assert {answer.malignant for answer in answers} == {True, False}
    # The predictions must differ, or a program that mixes them up would pass.
    assert np.ptp([answer.probabilities for answer in answers], axis=0).max() > 0.01
    return answers


@pytest.fixture(scope="module")
def grey_of_16_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that `predict` reads, but that image decoders read in different ways."""
    path = tmp_path_factory.mktemp("refused") / "grey.png"
    Image.fromarray(np.full((40, 50), 40_000, dtype=np.uint16)).save(path)
    return path


@pytest.fixture(scope="module")
def colours_of_16_bits(grey_of_16_bits: Path) -> Path:
    """A file whose low bytes Pillow drops without notice."""
    path = grey_of_16_bits.with_name("colours.png")
    path.write_bytes(png(np.full((40, 50, 3), 4000, dtype=np.uint16), 2))
    return path


def same_answers(printed: str, expected: Sequence[Prediction], tolerance: float = 1e-5) -> None:
    rows = [line.split("\t") for line in printed.splitlines()]
    flags = {True: "yes", False: "no", None: "-"}
    assert [row[:3] for row in rows] == [[each.path, each.predicted, flags[each.malignant]] for each in expected]
    found = [[float(value) for value in row[3:]] for row in rows]
    np.testing.assert_allclose(found, [each.probabilities for each in expected], rtol=0, atol=tolerance)


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program like a user, without the variables that disable ONNX Runtime's telemetry.

    The program must not write to the home folder.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert list(Path(home).rglob("*")) == []
    return done


def test_the_python_program(
    folder: Path,
    card: str,
    python: Path,
    pictures: list[Path],
    expected: list[Prediction],
    grey_of_16_bits: Path,
    colours_of_16_bits: Path,
) -> None:
    (folder / "classify.py").write_text(program(card, "python"))
    looked_for = "import importlib.util as u; print([n for n in ('torch', 'busi_tune') if u.find_spec(n)])"
    assert run([python, "-I", "-c", looked_for], folder).stdout == "[]\n"
    done = run([python, "-I", "classify.py", *pictures], folder)
    assert done.returncode == 0, done.stderr
    same_answers(done.stdout, expected)
    for path in (grey_of_16_bits, colours_of_16_bits):
        done = run([python, "-I", "classify.py", path], folder)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{path} has more than 8 bits a channel\n"


def test_the_javascript_program(
    folder: Path,
    card: str,
    node: Path,
    pictures: list[Path],
    expected: list[Prediction],
    grey_of_16_bits: Path,
    colours_of_16_bits: Path,
) -> None:
    (folder / "classify.mjs").write_text(program(card, "js"))
    done = run([node, "classify.mjs", *pictures], folder)
    assert done.returncode == 0, done.stderr
    same_answers(done.stdout, expected)
    with Image.open(pictures[0]) as image:
        image.convert("CMYK").save(folder / "cmyk.jpg")
    for path in (grey_of_16_bits, colours_of_16_bits, folder / "cmyk.jpg"):
        done = run([node, "classify.mjs", path], folder)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{path} is not a picture of 8-bit grey or RGB" in done.stderr


def test_the_browser_program(
    folder: Path,
    card: str,
    node: Path,  # noqa: ARG001
    pictures: list[Path],
    expected: list[Prediction],
    tmp_path: Path,
) -> None:
    (folder / "classify.html").write_text(program(card, "html"))
    with served(folder) as address, chromium(tmp_path) as browser:
        browser.get(f"{address}/classify.html")
        browser.find_element("css selector", "input").send_keys("\n".join(map(str, pictures)))
        shown = WebDriverWait(browser, 60).until(lambda _: whole(browser, len(pictures)))
        assert [each for each in complaints(browser) if "favicon.ico" not in each] == []
        assert {url for url in requested(browser) if not url.startswith((address, "data:"))} == set()
    same_answers(shown, [replace(answer, path=Path(answer.path).name) for answer in expected], 1e-4)


def whole(browser: WebDriver, count: int) -> str:
    """The lines on the page, or "" until there are `count` of them."""
    text = str(browser.find_element("css selector", "pre").get_property("textContent"))
    return text if text.count("\n") == count else ""


def test_the_program_in_cpp(
    folder: Path,
    compiled: Path,
    pictures: list[Path],
    expected: list[Prediction],
    grey_of_16_bits: Path,
    colours_of_16_bits: Path,
) -> None:
    opaque = [k for k, path in enumerate(pictures) if not has_transparency(path)]
    done = run([compiled, *(pictures[k] for k in opaque)], folder)
    assert done.returncode == 0, done.stderr
    same_answers(done.stdout, [expected[k] for k in opaque], 1e-4)
    # OpenCV ignores a transparent grey level, as the card says.
    others = [path for path in pictures if has_transparency(path) and path.name != "100%d.png"]
    assert len(others) == 3
    for path in (grey_of_16_bits, colours_of_16_bits, *others):
        done = run([compiled, path], folder)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{path} is not a picture of 8-bit grey or RGB\n"


def has_transparency(path: Path) -> bool:
    with Image.open(path) as image:
        return image.has_transparency_data


def test_programs_without_a_threshold(
    exported: Exported, card: str, python: Path, node: Path, compiled: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """An export without --sensitivity has no threshold; its programs are the same."""
    folder = linked(exported.folder, tmp_path / "export")
    shutil.copy(compiled, folder)
    (folder / "node_modules").symlink_to(compiled.with_name("node_modules"))
    (folder / "classify.py").write_text(program(card, "python"))
    (folder / "classify.mjs").write_text(program(card, "js"))
    expected = list(predict_files(open_export(folder), pictures[:2]))
    commands = ([python, "-I", "classify.py"], [node, "classify.mjs"], ["./classify"])
    for command in commands:
        same_answers(run([*command, *pictures[:2]], folder).stdout, expected, 1e-4)
