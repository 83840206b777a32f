"""A published folder or file is whole, whatever happened while it was written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft.errors import StorageError
from sft.storage import atomic
from sft.storage.atomic import STAGING_PREFIX, staged, staging_path, sync_tree, write_text

ROOT = Path(__file__).parents[3]


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "place" / "final"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def interrupt(folder: Path, error: BaseException) -> None:
    """Write half of what was to be published, then fail."""
    (folder / "file").write_text("half")
    raise error


def test_a_folder_appears_under_its_name_when_the_block_ends(final: Path) -> None:
    with staged(final) as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "file").write_text("whole")
        assert not final.exists()
    assert names(final.parent) == ["final", "final/deep", "final/deep/er", "final/deep/er/file"]
    assert (final / "deep" / "er" / "file").read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_an_interrupted_block_publishes_nothing(error: type[BaseException], final: Path) -> None:
    with pytest.raises(error), staged(final) as folder:
        interrupt(folder, error())
    assert names(final.parent) == []


def test_a_failing_disk_publishes_nothing_and_is_named(final: Path) -> None:
    with pytest.raises(StorageError, match="No space left") as caught, staged(final) as folder:
        interrupt(folder, OSError(28, "No space left on device"))
    assert str(final) in str(caught.value)
    assert names(final.parent) == []


@pytest.mark.parametrize("failing", ["sync_tree", "sync_folder"])
def test_a_failing_sync_is_an_error(failing: str, final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic, failing, refuse)
    with pytest.raises(StorageError, match="Input/output error"), staged(final) as folder:
        (folder / "file").write_text("x")
    assert not staging_path(final).exists()


def test_contents_are_on_disk_before_the_name_and_the_name_after(final: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(atomic, "sync_tree", lambda folder: order.append(f"sync tree {folder.name}"))
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: order.append(f"sync {folder.name}"))
    monkeypatch.setattr(Path, "rename", lambda path, to: (order.append(f"rename {path.name}"), rename(path, to))[1])
    with staged(final):
        pass
    staging = f"{STAGING_PREFIX}final"
    assert order == [f"sync tree {staging}", f"rename {staging}", "sync place"]


@pytest.mark.parametrize("kind", ["folder", "full folder", "file", "link"])
def test_what_exists_is_never_overwritten(kind: str, final: Path) -> None:
    final.parent.mkdir()
    if kind == "file":
        final.write_text("mine")
    elif kind == "link":
        (final.parent / "target").mkdir()
        final.symlink_to("target")
    else:
        final.mkdir()
        if kind == "full folder":
            (final / "mine").write_text("mine")
    before = names(final.parent)
    with pytest.raises(StorageError, match="exists already") as caught, staged(final):
        raise AssertionError("the block must not start")
    assert str(final) in str(caught.value)
    assert names(final.parent) == before


def test_a_folder_that_appeared_meanwhile_is_not_overwritten(final: Path) -> None:
    with pytest.raises(StorageError), staged(final):
        write_text(final / "other", "first")
    assert names(final.parent) == ["final", "final/other"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from sft.storage.atomic import staged
with staged(Path(sys.argv[1])) as folder:
    (folder / "left").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_writer_are_not_published(final: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(final)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(staging_path(final)) == ["left"]
    assert not final.exists()
    with staged(final) as folder:
        assert names(folder) == []
        (folder / "file").write_text("whole")
    assert names(final.parent) == ["final", "final/file"]


def test_staging_is_beside_the_final_place_and_hidden(final: Path) -> None:
    assert staging_path(final).parent == final.parent
    assert staging_path(final).name.startswith(".")


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Path and size of everything below the test's folder that is forced to disk, in order."""
    found: list[tuple[str, int]] = []

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        found.append((path.relative_to(tmp_path).as_posix(), path.stat().st_size if path.is_file() else 0))

    monkeypatch.setattr(os, "fsync", note)
    return found


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_everything_below_is_synced_files_before_folders(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (tmp_path / name).write_text(name)
    before = num_open_files()
    sync_tree(tmp_path)
    assert sorted(synced[:3]) == [("a/b/three", 9), ("a/two", 5), ("one", 3)]
    assert sorted(synced[3:]) == [(".", 0), ("a", 0), ("a/b", 0)]
    assert num_open_files() == before


# ------------------------------------------------------------------------------------------------ small files


@pytest.mark.parametrize("text", ["", "short", "Grüße\n你好\n", "x" * 100_000], ids=len)
def test_a_text_replaces_the_old_one_whole(text: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "state.json"
    write_text(path, "old and longer than the new")
    write_text(path, text)
    assert path.read_text(encoding="utf-8") == text
    assert names(path.parent) == ["state.json"]


def test_a_text_is_on_disk_before_its_name_and_the_name_after(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    write_text(tmp_path / "state.json", "text")
    assert synced == [(".state.json.part", 4), (".", 0)]


def test_until_the_new_text_is_whole_the_old_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")

    def fail(_: int) -> None:
        assert path.read_text() == "old"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state.json"]


def test_a_text_that_is_no_unicode_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a character: \ud83d")
    assert (path.read_text(), names(tmp_path)) == ("old", ["state.json"])


@pytest.mark.parametrize("name", ["file/state.json", "n" * 254])
def test_a_place_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text(tmp_path / name, "new")
