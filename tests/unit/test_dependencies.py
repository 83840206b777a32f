"""What is imported is declared, and what is declared is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES_OF_MODULES = {"flash_attn": "flash-attn", "fastokens": "fastokens", "deepspeed": "deepspeed", "wandb": "wandb"}
"""The packages of modules that may not be installed where the tests run."""
BY_NAME = {"tensorboard"}
"""Imported by another package, which tells its user to install it: PyTorch."""
MEASUREMENTS = "tests/bench"
"""Scripts that compare with other software, which they ask for themselves."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(texts: list[str]) -> set[str]:
    return {normal(Requirement(text).name) for text in texts} - {"sft"}


REQUIRED = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(texts) for name, texts in PROJECT["optional-dependencies"].items()}


def modules(*folders: str) -> Iterator[str]:
    """The top-level names of all modules from elsewhere that the files below these folders import."""
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if MEASUREMENTS in path.as_posix():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (name.name.split(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module).split(".")[0]


def packages(*folders: str) -> set[str]:
    """The packages that these modules come from."""
    known = metadata.packages_distributions()
    ours = {"sft", "tests", "data_recipes"}
    names = {name for name in modules(*folders) if name not in sys.stdlib_module_names | ours}
    # The standard library's own home for what `backports` holds begins with Python 3.14.
    names -= {"compression"}
    return {item for name in names for item in _packages_of(name, known.get(name, [NAMES_OF_MODULES.get(name, name)]))}


def _packages_of(name: str, found: list[str]) -> set[str]:
    """The packages that a top-level name may come from: of several that share it, those that we declare."""
    items = {normal(item) for item in found}
    assert items, name
    return items & REQUIRED.union(*EXTRAS.values()) or items


def test_what_runs_imports_what_is_declared() -> None:
    assert packages("sft", "data_recipes") - REQUIRED - set.union(*EXTRAS.values()) == set()
    assert packages("sft", "data_recipes") & EXTRAS["dev"] == set()


def test_what_is_declared_is_imported() -> None:
    wanted = REQUIRED | set.union(*(names for extra, names in EXTRAS.items() if extra != "dev"))
    assert wanted - packages("sft", "data_recipes") == BY_NAME


def test_the_tests_import_what_is_declared() -> None:
    assert packages("tests") - REQUIRED - set.union(*EXTRAS.values()) == set()
