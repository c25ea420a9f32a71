"""An audit as one self-contained page, with the pictures beside each other, so that a person can judge."""

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader

from busi_tune import files, images
from busi_tune.report.summary import summary
from busi_tune.results import AuditFile

SIDE = 160
MOST_GROUPS, MOST_PICTURES, MOST_PAIRS = 200, 12, 6


def write_page(path: Path, root: Path, audit: AuditFile) -> None:
    """Write `audit`, of the images in `root`, as HTML to `path`."""

    def picture(name: str) -> str:
        return base64.b64encode(images.preview(root / name, SIDE)).decode()

    environment = Environment(loader=PackageLoader("busi_tune.report", "."), autoescape=True)
    page = environment.get_template("audit.html.jinja").render(
        audit=audit,
        rows=summary(audit),
        picture=picture,
        side=SIDE,
        shown=min(MOST_GROUPS, len(audit["groups"])),
        most_pictures=MOST_PICTURES,
        most_pairs=MOST_PAIRS,
    )
    files.write_text(path, page + "\n")
