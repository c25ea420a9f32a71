"""Jinja's settings for all pages and model cards: values are escaped in HTML, and control characters everywhere."""

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from busi_tune.errors import printable


def shown(value: object) -> object:
    """A value in a template: texts without control characters, all others unchanged."""
    return printable(value) if type(value) is str else value


def environment(package: str, finalize: Callable[[object], object] = shown) -> Environment:
    """The environment for the templates in a package. It escapes values in all of them except Markdown."""
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=select_autoescape((), ("md.jinja",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
