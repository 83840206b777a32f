"""Checkpoints: published atomically, loaded only if every hash matches, set aside if not.

A checkpoint is a folder with fp32 weights and AdamW's moments (tensors.py), config.json, tokenizer.json, state.json and
the manifest. Its name contains its step, and only the step decides which one is the newest.
"""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sft.errors import DataError, StorageError
from sft.storage.atomic import STAGING_PREFIX, staging_path, sync_folder
from sft.storage.json_file import read_json
from sft.storage.manifest import MANIFEST, FileFacts, damaged_files, read_manifest, write_manifest_of
from sft.train.checkpoint.state import State

KIND = "checkpoint"
SCHEMA_VERSION = 2
BAD_PREFIX, TRASH_PREFIX = ".bad-", ".trash-"
FREE_SPACE_FACTOR = 1.3

log = logging.getLogger(__name__)


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """The folder that holds, or will hold, the checkpoint of a step."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(folder.name.removeprefix("step-"))


def open_staging(final: Path, num_bytes: int) -> Path:
    """The empty folder in which the checkpoint `final` is prepared.

    Raises: StorageError if `final` exists, or the disk is too full for num_bytes.
    """
    _require_space(final.parent, num_bytes)
    with contextlib.suppress(OSError):
        final.rmdir()  # an empty folder is not a checkpoint; any other folder stays and is refused here
    staging = staging_path(final)
    if final.exists():
        raise StorageError("exists already and is never overwritten", on=final, hint="name another folder")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
    except OSError as error:
        raise StorageError(f"cannot be written: {error}", on=final, hint="check space and permissions") from error
    return staging


def publish_staging(final: Path, step: int, files: Mapping[str, FileFacts], errors: Sequence[str]) -> None:
    """Give a prepared checkpoint its manifest, with these facts of its synced files, and then its final name.

    Raises: StorageError if there were errors, or the disk refuses; no file is left then.
    """
    staging = staging_path(final)
    try:
        if errors:
            raise OSError("; ".join(errors))
        write_manifest_of(staging, KIND, SCHEMA_VERSION, {"step": step}, files)
        # A name that is not synced yet could be lost by a power cut after the rename.
        sync_folder(staging)
        staging.rename(final)
        try:
            # Without this a power cut after the rename may bring the staging name back.
            sync_folder(final.parent)
        except OSError:
            final.rename(staging)  # otherwise the next try would find the name taken
            raise
    except OSError as error:
        raise StorageError(f"cannot be written: {error}", on=final, hint="check space and permissions") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def newest_whole(checkpoints: Path, *, set_aside: bool) -> Path | None:
    """The newest checkpoint whose files are all as published, or None.

    Every newer one that is damaged is reported as a warning. With `set_aside`, as the run itself calls it, each is
    renamed, so that it counts as history but is never loaded again; commands that only read the run leave it in place.

    Raises: StorageError if one was written by a newer version of this program.
    """
    for folder in published(checkpoints):
        problems = list(damage(folder))
        if not problems:
            return folder
        kept = f"kept as {_set_aside(folder).name}, " if set_aside else ""
        log.warning("%s is damaged (%s): %strying the one before", folder, "; ".join(problems), kept)
    return None


def require_whole(folder: Path) -> State:
    """The state of a checkpoint that is to be evaluated or exported.

    Raises: StorageError if it is not a checkpoint, or differs from what was published.
    """
    problems = list(damage(folder))
    if problems:
        raise StorageError(f"not a whole checkpoint: {'; '.join(problems)}", on=folder, hint="take another one")
    return State.read(folder)


def damage(folder: Path) -> Iterator[str]:
    """One sentence for each problem of a checkpoint.

    Raises: StorageError if it was written by a newer version of this program, or the disk refuses, which is not damage.
    """
    try:
        manifest = read_manifest(folder, KIND, SCHEMA_VERSION)
    except DataError as error:
        _refuse_newer(folder)
        yield error.what
        return
    try:
        yield from damaged_files(folder, manifest["files"])
    except (KeyError, TypeError, AttributeError) as broken:  # a flipped bit in one of the manifest's own keys
        yield f"{MANIFEST}: {broken!r}"
    except OSError as error:
        raise StorageError(f"cannot be read: {error}", on=folder, hint="check the disk and try again") from error


def published(checkpoints: Path) -> list[Path]:
    """Every folder with the final name of a checkpoint, the newest step first."""
    folders = [path for path in checkpoints.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name)]
    return sorted(folders, key=lambda path: path.name, reverse=True)


def has_bad(checkpoints: Path) -> bool:
    """True if a damaged checkpoint was set aside here."""
    return any(checkpoints.glob(f"{BAD_PREFIX}*"))


def clean(checkpoints: Path) -> None:
    """Delete what killed processes left behind: half-written and half-deleted checkpoints."""
    for prefix in (STAGING_PREFIX, TRASH_PREFIX):
        for folder in checkpoints.glob(f"{prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _require_space(checkpoints: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(checkpoints).free
    needed = int(FREE_SPACE_FACTOR * num_bytes)
    if free < needed:
        raise StorageError(
            f"{free / 1e9:.1f} GB free, a checkpoint needs {needed / 1e9:.1f} GB",
            on=checkpoints,
            hint="make room, or lower checkpoint.keep_last",
        )


def _refuse_newer(folder: Path) -> None:
    try:
        manifest = read_json(folder / MANIFEST)
        version = manifest["schema_version"] if manifest["kind"] == KIND else 0
    except (OSError, ValueError, KeyError, TypeError):
        return
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StorageError(
            f"schema version {version}, this program reads {SCHEMA_VERSION}",
            on=folder,
            hint="use the version of sft that wrote it",
        )


def _set_aside(folder: Path) -> Path:
    names = (f"{BAD_PREFIX}{folder.name}{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    aside = next(path for path in map(folder.with_name, names) if not path.exists())
    try:
        return folder.rename(aside)
    except OSError as error:
        raise StorageError(f"is damaged and cannot be set aside: {error}", on=folder) from error
