"""A lock file per folder, so that two jobs never write the same folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sft.errors import StorageError


@contextmanager
def folder_lock(path: Path, of: Path | None = None, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file at `path` while the block runs; it guards the folder `of`, by default the lock file's folder.

    The operating system releases it if the process dies. Several processes can hold a shared lock at once.

    Raises: StorageError if another process holds it, or it cannot be written.
    """
    with _opened(path) as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise StorageError(
                f"in use by {holder}", on=of or path.parent, hint="wait for it to end, or name another folder"
            ) from None
        except OSError as error:
            raise StorageError(
                f"cannot be locked: {error}", on=path, hint="put the folder on a file system with locks (flock)"
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {os.uname().nodename}")
        stream.flush()
        yield


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise StorageError(f"cannot be written: {error}", on=path, hint="check the folder and permissions") from error
