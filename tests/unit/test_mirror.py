"""tests/unit mirrors sft/: whoever knows a module finds its tests, and the other way round."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.affected import TESTED_ELSEWHERE

UNIT = Path(__file__).parent
SFT = UNIT.parents[1] / "sft"
OF_THE_REPOSITORY = {"test_dependencies.py", "test_imports.py", "test_mirror.py", "test_pages.py", "test_style.py"}
"""Tests of all files at once."""
SUPPORT = "support"
"""Tests of the tests' own helpers."""


def unit_tests() -> Iterator[Path]:
    for path in sorted(UNIT.rglob("test_*.py")):
        if path.name not in OF_THE_REPOSITORY and path.relative_to(UNIT).parts[0] != SUPPORT:
            yield path


def modules(folder: Path) -> list[str]:
    """The names that a test file in the mirror of this folder may begin with, behind `test_`."""
    return [path.stem for path in folder.iterdir() if path.suffix == ".py" and path.stem != "__init__"]


@pytest.mark.parametrize("path", list(unit_tests()), ids=lambda path: path.relative_to(UNIT).as_posix())
def test_a_test_lies_where_its_module_lies_and_begins_with_its_name(path: Path) -> None:
    folder, name = SFT / path.parent.relative_to(UNIT), path.stem.removeprefix("test_")
    assert folder.is_dir()
    assert [module for module in modules(folder) if name == module or name.startswith(f"{module}_")]


def has_own_tests(module: str) -> bool:
    folder, name = UNIT / Path(module).parent, Path(module).name
    return bool([*folder.glob(f"test_{name}.py"), *folder.glob(f"test_{name}_*.py")])


def test_the_tests_of_every_module_are_found_by_its_name_or_in_the_table() -> None:
    every = {
        path.relative_to(SFT).with_suffix("").as_posix()
        for path in SFT.rglob("*.py")
        if not path.stem.startswith("__") and "resources" not in path.parts
    }
    without = {module for module in every if not has_own_tests(module)}
    assert without == TESTED_ELSEWHERE.keys()
    assert [file for file in TESTED_ELSEWHERE.values() if not (UNIT.parents[1] / file).is_file()] == []


def test_the_scan_sees_the_tests() -> None:
    assert len(list(unit_tests())) > 80
