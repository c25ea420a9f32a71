"""Reports in a real browser: numbers equal report.json, nothing is loaded from outside, and pages are accessible."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Browser
from busi_tune import pipeline
from busi_tune.config import Config
from busi_tune.crossval_options import CrossvalOptions
from busi_tune.data.phantoms import make_phantoms
from busi_tune.export_options import ExportOptions
from busi_tune.external.evaluation import Elsewhere
from busi_tune.progress import Silent
from busi_tune.search_options import SearchOptions

pytest_plugins = ["browser"]
PAGES = {
    "run": "summary data learning confusion ranking reliability coverage mistakes export repeat",
    "study": "summary data learning confusion ranking reliability coverage study mistakes repeat",
    "crossval": "summary data confusion ranking reliability coverage folds mistakes repeat",
    "export": "summary data confusion ranking reliability coverage mistakes export repeat",
    "nested": "summary data confusion ranking reliability coverage nested folds mistakes repeat",
    "evaluation": "summary data confusion ranking reliability coverage evaluation mistakes repeat",
}
LARGEST = 8_000_000
each_page = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return tiny.replace(arch="squeezenet1_1", epochs=1)


@pytest.fixture(scope="module")
def place(phantoms: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One result folder of each kind with its report; the run is the best trial of the study."""
    folder = tmp_path_factory.mktemp("reports")
    options = SearchOptions(trials=2, trial_epochs=1, metric="val_accuracy", confirm=1, confirm_seeds=2)
    pipeline.search(phantoms, folder / "study", config, options, Silent())
    shutil.copytree(folder / "study" / "best", folder / "run")
    pipeline.export(folder / "run", folder / "export", phantoms, Silent(), options=ExportOptions(sensitivity=0.8))
    pipeline.crossval(phantoms, folder / "crossval", config, CrossvalOptions(folds=2), Silent())
    pipeline.search_folds(phantoms, folder / "nested", config, SearchOptions(trials=2), Silent(), folds=2)
    clinic = folder / "<b>clinic"
    clinic.mkdir()
    make_phantoms(clinic, Silent(), {"benign": 14, "malignant": 12, "normal": 8}, seed=7)
    pipeline.evaluate(folder / "export", Elsewhere(clinic), folder / "evaluation", Silent())
    pipeline.report(folder / "run", Silent(), export=folder / "export")
    pipeline.report(folder / "export", Silent(), root=phantoms)
    for name in ("study", "crossval", "nested", "evaluation"):
        pipeline.report(folder / name, Silent())
    return folder


@each_page
@pytest.mark.slow
def test_a_page_has_its_sections_and_asks_nobody_for_anything(name: str, place: Path, browser: Browser) -> None:
    page = place / name / "report.html"
    assert page.stat().st_size < LARGEST
    browser.show(page)
    sections = browser.run("return [...document.querySelectorAll('main > section')].map(one => one.id)")
    assert " ".join(sections) == PAGES[name]
    assert browser.run("return document.documentElement.dataset.ready") == "yes"
    assert browser.logged() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]


def test_the_parameters_of_a_study_are_those_of_its_space(place: Path) -> None:
    study = place / "study"
    space = json.loads((study / "study.json").read_text())["space"]
    trials = json.loads((study / "report.json").read_text())["study"]["trials"]
    assert [set(trial["params"]) for trial in trials] == [set(space)] * 2


def leaves(value: object) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def same(text: str, value: float) -> bool:
    """Whether the text shows this number, up to rounding of the text's last digit."""
    plain = text.replace(",", "").removesuffix("%")
    digits, _, power = plain.partition("e")
    last = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    scale = 100 if text.endswith("%") else 1
    return abs(float(plain) - scale * value) <= 0.501 * last


@each_page
@pytest.mark.slow
def test_every_number_is_that_of_report_json(name: str, place: Path, browser: Browser) -> None:
    document = json.loads((place / name / "report.json").read_text())
    browser.show(place / name / "report.html")
    numbers = browser.run(
        "return [...document.querySelectorAll('data[data-at]')]"
        ".map(one => [one.dataset.at, one.value, one.textContent])"
    )
    assert len(numbers) > 50
    for place_of, value, text in numbers:
        known: Any = document
        for part in json.loads(place_of):
            known = known[part]
        assert float(value) == known
        assert same(text, known), (place_of, value, text)
    charts = browser.run(
        "return [...document.querySelectorAll('.plot')].map(one => one.data.map(trace => [trace.x, trace.y, "
        "trace.customdata]))"
    )
    assert len(charts) > 5
    known_numbers = set(leaves(document))
    # Whole numbers are numbers of epochs and trials.
    strange = [n for n in leaves(charts) if n not in known_numbers and n != int(n)]
    assert strange == []


@each_page
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.slow
def test_a_page_fits_phones_and_screens_and_everybody_can_read_it(
    name: str, dark: bool, place: Path, browser: Browser
) -> None:
    for width in (1400, 390):
        browser.show(place / name / "report.html", width=width, dark=dark)
        browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
        assert browser.run("return document.documentElement.scrollWidth") == width
    assert browser.violations() == []
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(23, 28, 33)" if dark else "rgb(255, 255, 255)")
    ink = browser.run("return getComputedStyle(document.querySelector('.plot .xtick text')).fill")
    assert ink == ("rgb(228, 232, 236)" if dark else "rgb(29, 35, 42)")


@pytest.mark.slow
def test_a_page_is_printed_light_with_charts_that_fit(place: Path, browser: Browser) -> None:
    browser.show(place / "study" / "report.html", dark=True)
    sizes = "return [...document.querySelectorAll('.plot')].map(one => one._fullLayout.width)"
    ink = "return getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    screen = browser.run(sizes)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert set(browser.run(sizes)) == {650, 315}
    assert browser.run(ink) == "rgb(29, 35, 42)"
    assert browser.run("return [...document.querySelectorAll('details')].every(one => one.open)")
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(sizes) == screen
    assert browser.run(ink) == "rgb(228, 232, 236)"


@pytest.mark.slow
def test_tables_sort_and_every_picture_has_a_text(place: Path, browser: Browser) -> None:
    browser.show(place / "study" / "report.html")
    column = "return [...document.querySelectorAll('#study table')].at(-1)"
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    for order in ("ascending", "descending"):
        browser.run(f"{column}.querySelectorAll('th button')[1].click()".removeprefix("return "))
        values = [
            float(text)
            for text in browser.run(
                f"{column}.querySelectorAll('tbody td:nth-child(2) data').values().map(one => one.value).toArray()"
            )
        ]
        assert values == sorted(values, reverse=order == "descending")
        assert browser.run(f"{column}.querySelectorAll('th')[1].getAttribute('aria-sort')") == order
    texts = browser.run(
        "return [...document.querySelectorAll('img, [role=img]')].map(one => one.alt || one.getAttribute('aria-label'))"
    )
    assert len(texts) > 20
    assert all(len(text) > 20 for text in texts)


HOSTILE = {
    "benign": "<img src=x onerror=hacked()>",
    "malignant": "<b>\"&amp;'%{x}$y$</b>".replace("/", ""),
    "normal": "=cmd|'{{ 7*7 }}\u202egnp",
}


@pytest.mark.slow
def test_names_from_users_are_shown_as_they_are(
    phantoms: Path, config: Config, tmp_path: Path, browser: Browser
) -> None:
    for own, name in HOSTILE.items():
        shutil.copytree(phantoms / own, tmp_path / "data" / name)
        for path in sorted((tmp_path / "data" / name).iterdir()):
            path.rename(path.with_name(path.name.replace("(", "<script>hacked()\"'(")))
    pipeline.baseline(tmp_path / "data", tmp_path / "<script>run", config, Silent())
    pipeline.report(tmp_path / "<script>run", Silent())
    browser.show(tmp_path / "<script>run" / "report.html")
    assert browser.logged() == []
    assert browser.run("return document.querySelectorAll('script').length") == 3
    assert (
        browser.run("return document.querySelectorAll('main img[src=x], main b > b, main section script').length") == 0
    )
    heads = browser.run("return [...document.querySelectorAll('.matrix thead th')].map(one => one.textContent)")
    assert heads == sorted(name.replace("\u202e", "\\u202e") for name in HOSTILE.values())
    titles = browser.run("return [...document.querySelectorAll('#ranking figcaption')].map(one => one.textContent)")
    assert titles[::2] == [f"ROC, {name}" for name in heads]
    assert browser.violations() == []
