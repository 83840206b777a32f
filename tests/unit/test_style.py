"""The house style, where a machine can check it: sizes, docstrings, no leftovers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    path
    for folder in ("sft", "data_recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py"
]
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 300
LEFTOVERS = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

of_every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_sentence(docstring: str | None) -> bool:
    """Whether its first line is a whole sentence."""
    return docstring is not None and docstring.splitlines()[0].rstrip().endswith(".")


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


@of_every_module
def test_a_function_fits_on_a_screen(path: Path) -> None:
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@of_every_module
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@of_every_module
def test_every_public_name_is_introduced_by_a_sentence(path: Path) -> None:
    tree = ast.parse(path.read_text())
    unsaid = [node.name for node in public(tree.body) if not is_sentence(ast.get_docstring(node))]
    if not is_sentence(ast.get_docstring(tree)):
        unsaid.append("the module")
    assert unsaid == []


@of_every_module
def test_a_docstring_begins_with_a_sentence_wherever_there_is_one(path: Path) -> None:
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Definition))
    assert [node.name for node in nodes if (text := ast.get_docstring(node)) and not is_sentence(text)] == []


def test_a_sentence_stands_under_every_setting() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "sft" / "config").glob("*.py")]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) and is_config(node)]
    unsaid = []
    for node in classes:
        for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
            if (
                isinstance(statement, ast.AnnAssign)
                and "ClassVar" not in ast.unparse(statement.annotation)
                and not is_sentence(_text(below))
            ):
                unsaid.append(f"{node.name}.{ast.unparse(statement.target)}")
    assert len(classes) > 8
    assert unsaid == []


def is_config(node: ast.ClassDef) -> bool:
    return node.name.endswith("Config")


def _text(node: ast.stmt | None) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return None


@of_every_module
def test_no_error_is_swallowed_unnamed(path: Path) -> None:
    bare = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) == "BaseException")
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]
    assert bare == []


@of_every_module
def test_assert_checks_no_input(path: Path) -> None:
    """Telling the type checker what is known is all that it is for."""
    tests = [ast.unparse(node.test) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert [test for test in tests if not re.match(r"isinstance\(|[\w.]+ is not None$", test)] == []


@of_every_module
def test_nothing_is_left_for_later(path: Path) -> None:
    assert LEFTOVERS.findall(path.read_text()) == []
