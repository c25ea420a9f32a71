"""The HTML pages of a model: the page for pictures, with the model card, and the description for programs."""

import re
from collections.abc import Mapping
from pathlib import Path

from markdown_it import MarkdownIt

from busi_tune import files, templates
from busi_tune.inference import VERIFICATION, Classifier
from busi_tune.inference.certificate import read_certificate
from busi_tune.overlays import LIMITS
from busi_tune.serve.uploads import MEGABYTE, MOST_BYTES

CARD = "README.md"
MOST_ROWS = 500


def front_page(classifier: Classifier) -> str:
    """The HTML of the page that takes pictures."""
    model = classifier.metadata
    card, changed = _card(classifier.path.parent)
    facts = {
        "classes": model.classes,
        "flag": model.flag,
        "explains": classifier.has_maps,
        "mostBytes": MOST_BYTES,
        "mostRows": MOST_ROWS,
    }
    return (
        templates.environment("busi_tune.serve")
        .get_template("page.html.jinja")
        .render(
            model=model,
            path=str(classifier.path),
            facts=facts,
            card=card,
            changed=changed,
            limits=LIMITS,
            megabytes=MOST_BYTES // MEGABYTE,
        )
    )


def interface_page(document: Mapping[str, object]) -> str:
    """The description of `POST /predict` as an HTML page; `document` is the OpenAPI document."""
    return templates.environment("busi_tune.serve").get_template("interface.html.jinja").render(document=document)


def _card(folder: Path) -> tuple[str, bool]:
    """The model card of a folder as HTML, or "" if there is none, and whether it differs from the certified card."""
    path = folder / CARD
    if not path.exists():
        return "", False
    text = path.read_text(encoding="utf-8", errors="replace")
    certified = read_certificate(folder)["files"] if (folder / VERIFICATION).exists() else {}
    # HTML inside the card is shown as text, not rendered. The metadata before the card is not shown.
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(body)
    return html, certified.get(CARD) != files.sha256(path)
