"""Atomic writes: everything is written under a temporary name, synced, then renamed to its final name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sft.errors import StorageError

STAGING_PREFIX = ".staging-"


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` that is renamed to it if the block succeeds, and removed if it fails.

    Raises: StorageError if `final` exists already or cannot be written.
    """
    if final.exists():
        raise StorageError("exists already and is never overwritten", on=final, hint="name another folder")
    staging = staging_path(final)
    shutil.rmtree(staging, ignore_errors=True)  # left by a killed writer
    try:
        staging.mkdir(parents=True)
        yield staging
        sync_tree(staging)
        staging.rename(final)
        # Without this, a power cut after the rename may undo it.
        sync_folder(final.parent)
    except OSError as error:
        raise StorageError(f"cannot be written: {error}", on=final, hint="check space and permissions") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def staging_path(final: Path) -> Path:
    """The staging folder of `final`: a hidden sibling, so that the rename stays on one file system."""
    return final.parent / f"{STAGING_PREFIX}{final.name}"


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically: readers see the old text or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot be written: {error}", on=path, hint="check space and permissions") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Fsync every file and folder below, so that their contents are on disk before the rename."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync(path)
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Fsync a folder's list of names."""
    sync(folder)


def sync(path: Path) -> None:
    """Fsync a file's contents, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
