"""An audit as one self-contained HTML page that shows near-duplicates side by side."""

import base64
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader

from busi_tune import files
from busi_tune.data.reading import PREVIEW, ImageReading
from busi_tune.errors import printable
from busi_tune.report.summary import summary
from busi_tune.results import AuditFile

MOST_GROUPS, MOST_PICTURES, MOST_PAIRS = 200, 12, 6


def write_page(path: Path, audit: AuditFile, images: Mapping[str, ImageReading]) -> None:
    """Write `audit`, the audit of `images`, as HTML to `path`."""

    def picture(name: str) -> str:
        return base64.b64encode(images[name].preview).decode()

    environment = Environment(
        loader=PackageLoader("busi_tune.report", "."),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    page = environment.get_template("audit.html.jinja").render(
        audit=audit,
        rows=summary(audit),
        picture=picture,
        side=PREVIEW,
        shown=min(MOST_GROUPS, len(audit["groups"])),
        most_pictures=MOST_PICTURES,
        most_pairs=MOST_PAIRS,
    )
    files.write_text(path, page + "\n")
