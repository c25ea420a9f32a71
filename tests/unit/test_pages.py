"""Paths in pages and source files: each leads to a file. `make docs` checks the anchors of the pages."""

import re
import tomllib
from pathlib import Path

import pytest

import busi_tune

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])
SOURCES = [*(ROOT / "busi_tune").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
NAMED = re.compile(r"(?<![\w/.-])(?:docs|tests|busi_tune)/[\w./-]*\w\.(?:py|md|csv\.gz|png|cff)\b")


def named(text: str) -> set[str]:
    """The repository paths in a text."""
    return set(NAMED.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_named_files_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    links = [target for target in LINK.findall(text) if not (page.parent / target).exists()]
    assert links == []
    assert [name for name in sorted(named(text)) if not (ROOT / name).exists()] == []


def test_files_that_the_code_names_exist() -> None:
    missing = {name for path in SOURCES for name in named(path.read_text()) if not (ROOT / name).exists()}
    assert missing == set()


def test_the_readme_fits_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_pip_is_told_the_path_of_the_source() -> None:
    """The package is on no package index, so `pip install busi-tune` would fail or install another project."""
    texts = [path.read_text() for path in (*PAGES, *SOURCES) if path != Path(__file__)]
    installs = {line for text in texts for line in re.findall(r"pip install [^`\"\n]*busi-tune[^`\"\n;]*", text)}
    assert installs
    assert [line for line in installs if "/path/to/busi-tune" not in line and "--no-index" not in line] == []


def test_the_citation_has_the_packages_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = dict(re.findall(r"^(version|license): (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert cited == {"version": busi_tune.__version__, "license": project["license"]}
    assert project["version"] == busi_tune.__version__
