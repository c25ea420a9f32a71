"""Pytest fixture: a headless Chromium that records console messages and network requests. PYTEST_DONT_REWRITE"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver

from chromium import chromium, requested, resize

FLAGS = ("--hide-scrollbars", "--enable-unsafe-swiftshader")

# Limit for loading a page or running a script, in seconds.
PATIENCE = 300


@dataclass(frozen=True)
class Browser:
    """One browser window."""

    driver: webdriver.Chrome

    def show(self, page: Path, *, width: int = 1400, dark: bool = False) -> None:
        """Opens a local page in a window of this width, and clears the logs."""
        resize(self.driver, width, 900, dark=dark)
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(page.resolve().as_uri())

    def run(self, script: str) -> Any:
        """Runs the body of a JavaScript function and returns its value."""
        return self.driver.execute_script(script)

    def logged(self) -> list[str]:
        """Console messages and errors, without warnings of the software renderer about its speed."""
        entries = self.driver.get_log("browser")
        return [str(e["message"]) for e in entries if e["level"] == "SEVERE" or e["source"] != "rendering"]

    def requests(self) -> list[str]:
        """The addresses that the page requested, local ones included."""
        return requested(self.driver)

    def violations(self) -> list[str]:
        """Serious and critical findings of axe-core; the inside of a chart counts as one image and is not checked."""
        outside = {"exclude": [[".plot > *"]]}
        found = Axe().run(self.driver, outside, {"resultTypes": ["violations"]})["violations"]
        return [
            f"{each['id']}: {[node['html'][:120] for node in each['nodes']][:3]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]


@pytest.fixture(scope="session")
def browser(session_folder: Path) -> Iterator[Browser]:
    """Chromium from the system's packages; without it the test is skipped."""
    downloads = session_folder / "downloads"
    downloads.mkdir()
    with chromium(downloads, *FLAGS) as driver:
        # Loading can be slow on a busy machine.
        driver.set_script_timeout(PATIENCE)
        driver.set_page_load_timeout(PATIENCE)
        yield Browser(driver)
