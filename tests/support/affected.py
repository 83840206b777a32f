"""The tests of what changed: `python -m tests.support.affected` prints their paths, for `make check`.

tests/unit mirrors sft/, so the tests of sft/a/b.py are tests/unit/a/test_b*.py; a recipe's are tests/recipes, and the
batch scripts' tests/slurm. What holds for all files is tested in any case.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_ALL_FILES = tuple(f"tests/unit/test_{name}.py" for name in ("imports", "mirror", "pages", "style"))
OF_FOLDERS = {"data_recipes": "tests/recipes", "configs": "tests/unit/config", "slurm": "tests/slurm"}


def affected(changed: Iterable[str], root: Path = ROOT) -> list[str]:
    """The test files and folders for these files, by their paths in the repository."""
    found = set(OF_ALL_FILES)
    for name in changed:
        found.update(_tests_of(Path(name), root))
    return sorted(path for path in found if (root / path).exists())


def changed_files(root: Path = ROOT) -> list[str]:
    """Files that differ from the last commit; of a clean tree, those that it changed."""
    edited = _git(root, "diff", "--name-only", "HEAD") + _git(root, "ls-files", "--others", "--exclude-standard")
    return edited or _git(root, "diff", "--name-only", "HEAD~1", "HEAD")


def _tests_of(path: Path, root: Path) -> Iterator[str]:
    top = path.parts[0]
    if top in OF_FOLDERS:
        yield OF_FOLDERS[top]
    elif top == "tests" and path.name.startswith("test_"):
        yield path.as_posix()
    elif top == "sft" and path.suffix == ".py":
        folder = root / "tests/unit" / path.parent.relative_to("sft")
        names = (f"test_{path.stem}.py", f"test_{path.stem}_*.py")
        yield from (found.relative_to(root).as_posix() for pattern in names for found in folder.glob(pattern))


def _git(root: Path, *words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


if __name__ == "__main__":
    sys.stdout.write(" ".join(affected(changed_files())))
