"""The page of `busi-tune serve` in a real browser: dropped pictures get the answers of `predict`."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from axe_core_python.selenium import Axe
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from busi_tune.inference import predict
from chromium import chromium, complaints, requested, resize
from serving import Served, served
from small_export import CLASSES, small_model, write_export

pytestmark = pytest.mark.slow
PATIENCE = 120
CARD = "# Breast ultrasound\n\n| metric | test |\n|---|---|\n| accuracy | 0.8 |\n\n```python\nprint()\n```\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def export(place: Path) -> Path:
    folder = write_export(place / "export", {"model.onnx": small_model()})
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def server(export: Path) -> Iterator[Served]:
    with served(export) as found:
        yield found


@pytest.fixture(scope="module")
def browser(place: Path) -> Iterator[webdriver.Chrome]:
    with chromium(place) as found:
        yield found


@pytest.fixture
def page(browser: webdriver.Chrome, server: Served) -> Iterator[webdriver.Chrome]:
    """The page, newly loaded. After the test, its console must be empty and it must have contacted no other host."""
    resize(browser, 1400, 900)
    browser.get(server.url)
    yield browser
    assert complaints(browser) == []
    assert {urlsplit(url).netloc for url in requested(browser) if not url.startswith(("data:", "blob:"))} <= {
        urlsplit(server.url).netloc
    }


def draw(path: Path, seed: int, *, side: int = 48) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(path)
    return path


def drop(page: webdriver.Chrome, paths: list[Path]) -> None:
    """Drops files on the field like a user."""
    where = page.execute_script(
        "const box = document.getElementById('drop').getBoundingClientRect();"
        "return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)]"
    )
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": where[0], "y": where[1], "data": data}
        page.execute_cdp_cmd("Input.dispatchDragEvent", event)


def answers(page: webdriver.Chrome, count: int) -> list[dict[str, str]]:
    """The text of each cell and the exact probabilities by row of the table, once all `count` pictures are answered."""
    state = page.find_element(By.ID, "state")
    WebDriverWait(page, PATIENCE).until(lambda _: state.text.startswith(f"{count} of {count} done"))
    rows: list[dict[str, str]] = page.execute_script(
        "return [...document.querySelectorAll('#answers tbody tr')].map((row) => Object.fromEntries(["
        "...[...row.cells].map((cell) => [cell.classList[0], cell.textContent]),"
        "['values', [...row.querySelectorAll('.value')].map((value) => value.dataset.value).join(' ')]]))"
    )
    return rows


def is_wider_than_the_window(page: webdriver.Chrome) -> bool:
    found: bool = page.execute_script(
        "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
    return found


def violations(page: webdriver.Chrome) -> list[str]:
    """What axe-core calls serious, or worse."""
    found = Axe().run(page)["violations"]
    return [f"{one['id']}: {one['help']}" for one in found if one["impact"] in {"serious", "critical"}]


def test_dropped_pictures_are_answered_as_predict_does(
    page: webdriver.Chrome, export: Path, place: Path, tmp_path: Path
) -> None:
    names = ["scan.png", "=cmd|' !A1.png", '"quoted", <b>bold<b>.png', "ünï.tif"]
    paths = [draw(tmp_path / name, seed) for seed, name in enumerate(names)]
    coloured = np.zeros((30, 30, 3), np.uint8)
    coloured[..., 0] = 200
    Image.fromarray(coloured).save(tmp_path / "red.png")
    paths.append(tmp_path / "red.png")
    drop(page, paths)
    rows = answers(page, 5)
    expected = list(predict(export, paths))
    for row, found, path in zip(rows, expected, paths, strict=True):
        assert row["file"] == path.name
        assert row["answer"] == found.predicted
        assert [float(value) for value in row["values"].split()] == pytest.approx(found.probabilities, abs=1e-4)
        assert row["flag"] == ("yes" if found.malignant else "no")
        assert row["remark"] == found.warning
    assert rows[4]["remark"] == "colour where the training data is grey"
    labels = page.execute_script("return [...document.querySelectorAll('canvas')].map((c) => c.ariaLabel)")
    assert labels == [path.name for path in paths if path.suffix == ".png"]

    page.find_element(By.ID, "csv").click()
    table = place / "answers.csv"
    WebDriverWait(page, PATIENCE).until(lambda _: table.exists())
    with table.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["path"] for line in lines] == [names[0], "'" + names[1], *names[2:], "red.png"]
    for line, found in zip(lines, expected, strict=True):
        values = [float(line[f"p_{name}"]) for name in CLASSES]
        assert values == pytest.approx(found.probabilities, abs=1e-6)
        assert (line["predicted"], line["malignant"], line["warning"], line["error"]) == (
            found.predicted,
            str(found.malignant),
            found.warning,
            "",
        )


def test_files_that_are_no_pictures_are_rows_with_their_errors(page: webdriver.Chrome, tmp_path: Path) -> None:
    whole = draw(tmp_path / "whole.png", 0, side=200)
    (tmp_path / "broken.png").write_bytes(whole.read_bytes()[:9000])
    Image.new("L", (10_000, 6_000)).save(tmp_path / "sixty.png")
    (tmp_path / "notes.txt").write_text("no picture\n")
    (tmp_path / "empty.png").write_bytes(b"")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    words = {
        "broken.png": "damaged or unreadable",
        "sixty.png": "10000 x 6000 pixels are more than the 50,000,000 that are read",
        "notes.txt": "not a PNG, JPEG, BMP, TIFF, WEBP image",
        "empty.png": "empty",
        "huge.png": "larger than the 64 MB that are accepted",
    }
    page.find_element(By.ID, "files").send_keys(
        "\n".join(str(path) for path in (*map(tmp_path.joinpath, words), whole))
    )
    *broken, good = answers(page, 6)
    for row in broken:
        assert row["answer"] == "no prediction"
        assert words[row["file"]] in row["remark"]
    assert good["answer"] in CLASSES


def test_two_hundred_at_once(page: webdriver.Chrome, export: Path, tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{number}.png", number) for number in range(200)]
    started = time.monotonic()
    drop(page, paths)
    rows = answers(page, 200)
    assert time.monotonic() - started < PATIENCE
    for row, found in zip(rows, predict(export, paths), strict=True):
        assert row["file"] == Path(found.path).name
        assert [float(value) for value in row["values"].split()] == pytest.approx(found.probabilities, abs=1e-4)
    page.find_element(By.ID, "clear").click()
    assert not page.find_element(By.ID, "answers").is_displayed()


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits(page: webdriver.Chrome, server: Served, width: int, dark: bool, tmp_path: Path) -> None:
    resize(page, width, 900, dark=dark)
    name = "a-name-without-a-place-to-break-" * 5 + ".png"
    drop(page, [draw(tmp_path / name, 0), draw(tmp_path / "b.png", 1)])
    answers(page, 2)
    page.find_element(By.CSS_SELECTOR, "summary").click()
    assert page.find_element(By.CSS_SELECTOR, "article table").is_displayed()
    assert not is_wider_than_the_window(page)
    assert violations(page) == []
    background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
    page.get(f"{server.url}/docs")
    assert not is_wider_than_the_window(page)
    assert violations(page) == []
