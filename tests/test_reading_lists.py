"""The reading lists of the README and examples/reading.md agree with the code.

An item is a file and the name to read there. The code that leads to it is in an earlier file of the list: in the
previous one, or in another one if the item has "(from N)". That file imports the name and uses it. In an item with
"(through `Name`)", the object was passed as an argument instead, and the earlier file calls the method.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import capfilt

ROOT = Path(capfilt.__file__).resolve().parents[1]
LIMITS = {"How a caption is made": 6, "From a text to its verdict": 8, "From a data set to the loss": 8}
ITEM = re.compile(r"^(\d+)\. \[`([\w/]+\.py)`\]\((?:\.\./)?([\w/]+\.py)\): `([\w.]+)`(.*(?:\n   .*)*)", re.MULTILINE)


class Item(NamedTuple):
    """A file, the name to read there, the number of the file that leads to it, and whether it does so by argument."""

    file: str
    name: str
    origin: int
    handed_over: bool


def read_list(title: str) -> list[Item]:
    """Return the numbered list below a title of the README or of examples/reading.md."""
    for page in ("README.md", "examples/reading.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        if title in text:
            block = re.split(r"\n#|\n\n(?!\d+\.)", text.split(title, 1)[1].lstrip(":,. \n").split("\n\n", 1)[-1])[0]
            items = []
            for number, file, link, name, rest in ITEM.findall(block):
                assert int(number) == len(items) + 1 and file == link
                origin = re.search(r"\(from (\d+)", rest)
                items.append(Item(file, name, int(origin[1]) if origin else int(number) - 1, "through `" in rest))
            return items
    raise AssertionError(f"no page has the list '{title}'")


def module_of(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def parse(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Return the full name of each local name that an import binds, anywhere in the file."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
    return names


def defines(tree: ast.Module, name: str) -> bool:
    """Check that a file defines a function, class or `Class.method`, or assigns the name."""
    first, _, method = name.partition(".")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == first:
            inner = [item.name for item in getattr(node, "body", []) if isinstance(item, ast.FunctionDef)]
            return not method or method in inner
    return False


class UsedNames(ast.NodeVisitor):
    """Collects the last part of each name that a file uses outside imports and annotations: `f`, `m` in `f(x.m)`."""

    def __init__(self, tree: ast.Module) -> None:
        self.names: set[str] = set()
        self.visit(tree)

    def visit_Name(self, node: ast.Name) -> None:
        self.names.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.names.add(node.attr)
        self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults), *node.body):
            self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)


@pytest.mark.parametrize("title", LIMITS)
def test_a_list_is_short_and_enters_each_file_once(title: str) -> None:
    files = [item.file for item in read_list(title)]
    assert 3 <= len(files) <= LIMITS[title]
    assert len(set(files)) == len(files)
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("title", LIMITS)
def test_each_name_is_defined_in_its_file_and_used_in_the_file_that_leads_to_it(title: str) -> None:
    items = read_list(title)
    for item in items:
        assert defines(parse(item.file), item.name), f"{item.file} does not define {item.name}"
    for number, item in enumerate(items[1:], 2):
        assert 1 <= item.origin < number
        origin = parse(items[item.origin - 1].file)
        first, _, method = item.name.partition(".")
        arrow = f"{items[item.origin - 1].file} -> {item.file} {item.name}"
        assert (method or first) in UsedNames(origin).names, f"{arrow}: no use of {method or first}"
        if not item.handed_over:
            full_names = imported_names(origin).values()
            assert {module_of(item.file), f"{module_of(item.file)}.{first}"} & set(full_names), f"{arrow}: no import"


@pytest.mark.parametrize("title", LIMITS)
def test_no_file_imports_an_earlier_file_of_its_list(title: str) -> None:
    files = [item.file for item in read_list(title)]
    for number, file in enumerate(files):
        full_names = imported_names(parse(file)).values()
        for earlier in map(module_of, files[:number]):
            backward = [name for name in full_names if name == earlier or name.startswith(f"{earlier}.")]
            assert backward == [], f"{file} imports {backward}"
