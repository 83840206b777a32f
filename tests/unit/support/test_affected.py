"""`make check` runs the tests of what changed."""

import pytest

from tests.support.affected import OF_ALL_FILES, affected

CASES = [
    ("sft/errors.py", ["tests/unit/test_errors.py"]),
    ("sft/data/dedup/minhash.py", ["tests/unit/data/dedup/test_minhash.py"]),
    ("sft/config/loading.py", ["tests/unit/config/test_loading.py", "tests/unit/config/test_loading_mistakes.py"]),
    ("sft/train/fingerprint.py", ["tests/unit/train/test_run_folder.py"]),
    ("sft/data/sources/hub.py", []),
    ("data_recipes/hh/convert.py", ["tests/recipes"]),
    ("slurm/lib.sh", ["tests/slurm"]),
    ("tests/unit/test_errors.py", ["tests/unit/test_errors.py"]),
    ("tests/unit/test_gone.py", []),
    ("README.md", []),
]


@pytest.mark.parametrize(("changed", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_changed_file_has_its_mirror_tested(changed: str, expected: list[str]) -> None:
    assert set(affected([changed])) - set(OF_ALL_FILES) == set(expected)


def test_what_holds_for_all_files_is_always_tested() -> None:
    assert affected([]) == sorted(OF_ALL_FILES)
