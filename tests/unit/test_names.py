"""Rules for names and shapes of code in all modules of the package."""

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import busi_tune

PACKAGE = Path(busi_tune.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: ast.parse(source) for name, source in SOURCES.items()}
each_module = pytest.mark.parametrize("name", MODULES)

MOST_POSITIONAL = 5
DEEPEST = 3
# The number of lines with `Any` must stay below this.
ANY_LINES = 30
COMPOUND = (ast.If, ast.For, ast.While, ast.AsyncFor, ast.With, ast.AsyncWith, ast.Try)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(module) if isinstance(node, Function))


def depth(node: ast.AST, above: int = 0) -> int:
    """The deepest nesting of compound statements in a function; `elif` counts at the depth of its `if`."""
    deepest = above
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, depth(child, above + (isinstance(child, COMPOUND) and not is_elif)))
    return deepest


def positional(function: Function) -> list[str]:
    """Parameters that accept positional arguments, without `self` and `cls`."""
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def renamed(module: ast.Module) -> list[str]:
    """Imports from the package that use another name (`import ... as`)."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found += [
                f"{origin}{one.name} as {one.asname}"
                for one in node.names
                if one.asname and f"{origin}{one.name}".startswith("busi_tune.")
            ]
    return found


def any_lines(source: str) -> int:
    """The number of code lines with the name `Any`; comments and strings do not count."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.NAME and token.string == "Any"})


@each_module
def test_a_modules_docstring_is_a_statement(name: str) -> None:
    docstring = ast.get_docstring(MODULES[name])
    assert docstring
    assert "?" not in docstring


@each_module
def test_nothing_of_the_package_is_imported_under_another_name(name: str) -> None:
    assert renamed(MODULES[name]) == []


@each_module
def test_functions_take_few_positional_parameters(name: str) -> None:
    taken = [(function.name, positional(function)) for function in functions(MODULES[name])]
    assert [(function, names) for function, names in taken if len(names) > MOST_POSITIONAL] == []


@each_module
def test_functions_are_not_nested_deeply(name: str) -> None:
    depths = [(function.name, depth(function)) for function in functions(MODULES[name])]
    assert [(function, found) for function, found in depths if found > DEEPEST] == []


def test_every_class_has_a_name_of_its_own() -> None:
    classes = (node.name for module in MODULES.values() for node in ast.walk(module) if isinstance(node, ast.ClassDef))
    assert [name for name, count in Counter(classes).items() if count > 1] == []


def test_no_two_modules_are_called_options() -> None:
    assert Counter(Path(name).stem for name in MODULES)["options"] <= 1


def test_any_stands_on_few_lines() -> None:
    found = {name: any_lines(source) for name, source in SOURCES.items()}
    assert sum(found.values()) < ANY_LINES, {name: count for name, count in found.items() if count}


CODE = '''
import numpy as np
import busi_tune.files as store
from busi_tune import files, locks as keys
from busi_tune.data import split
from typing import Any

class Thing:
    """Any thing."""
    def method(self, a, b, /, c, *, d):  # Any comment
        if a:
            pass
        elif b:
            for c in d:
                with d: pass
        def inner():
            while True: pass
def free(a: Any, b: "text of Any"): return Any
'''


def test_the_rules_see_what_they_are_for() -> None:
    module = ast.parse(CODE)
    assert renamed(module) == ["busi_tune.files as store", "busi_tune.locks as keys"]
    by_name = {function.name: function for function in functions(module)}
    assert positional(by_name["method"]) == ["a", "b", "c"]
    assert {name: depth(function) for name, function in by_name.items()} == {"method": 3, "inner": 1, "free": 0}
    assert any_lines(CODE) == 2
