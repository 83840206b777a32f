"""Download raw files from the hub to sources_dir and pin them in sources.lock.json. Read `fetch` first."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sft.config.data import BuildConfig, SourceConfig
from sft.console.progress import Advance, progress
from sft.data.sources.hub import DEFAULT_RETRIES, Hub, HubFile, Repository, RetryPolicy, size_of
from sft.data.sources.lockfile import Lock, LockedFile, LockedSource, raw_name, read_lock, write_lock
from sft.errors import ConfigError, DataError, StorageError
from sft.hashing import file_sha256
from sft.storage.folder_lock import folder_lock

NOT_ON_THE_HUB = "none"
MB = 10**6

Say = Callable[[str], None]


def fetch(
    config: BuildConfig, *, update: bool = False, say: Say = print, retries: RetryPolicy = DEFAULT_RETRIES
) -> Lock:
    """Download the files of the enabled sources of a mixture, and pin them in the lock.

    For a pinned source exactly the locked files are restored, without a request to the hub if all are there. `update`,
    or another hub_id or revision in its recipe, resolves its revision again; other sources of the lock do not change.

    Raises: ConfigError if a repository or revision does not exist or a pattern matches no file, PeerError if the hub
    does not answer, DataError if a file does not match its hash, StorageError if the disk fails or is too full.
    """
    folder = Path(config.sources_dir)
    hub = Hub(say, retries)
    with folder_lock(folder / ".fetch.lock"):
        lock = read_lock(folder)
        plans = [
            _plan(hub, folder, name, source, None if update else lock.get(name), say)
            for name, source in sorted(config.sources.items())
            if source.enabled and _is_on_hub(name, source, say)
        ]
        with _counting([pair for plan in plans for pair in plan.missing], folder) as count:
            for plan in plans:
                locked = _fetch_source(hub, folder, plan, count)
                _remove_left_over(folder, lock.get(plan.name), locked, say)
                lock[plan.name] = locked
                write_lock(folder, lock)
                say(_summary(plan, locked))
    return lock


def _summary(plan: "_Plan", locked: LockedSource) -> str:
    num_files, num_bytes = len(locked.files), sum(file.bytes for file in locked.files)
    files = "1 file" if num_files == 1 else f"{num_files} files"
    pinned = f"{locked.hub_id} at {locked.commit[:12]}"
    return f"{plan.name}: {files}, {num_bytes / MB:,.1f} MB, {pinned}, {len(plan.missing)} downloaded"


@dataclass(frozen=True)
class _Plan:
    """One source: its commit, its files with their local paths, and those that are not there yet."""

    name: str
    source: SourceConfig
    commit: str
    files: Sequence[tuple[HubFile, Path]]
    missing: Sequence[tuple[HubFile, Path]]


def _is_on_hub(name: str, source: SourceConfig, say: Say) -> bool:
    if source.hub_id == NOT_ON_THE_HUB:
        say(f"{name}: not on the hub, nothing to fetch")
        return False
    if not source.hub_files:
        raise ConfigError(f"source {name} has no hub_files", hint=f"such as sources.{name}.hub_files=[data/*.parquet]")
    return True


def _plan(hub: Hub, folder: Path, name: str, source: SourceConfig, locked: LockedSource | None, say: Say) -> _Plan:
    asked = f"{source.hub_id} at {source.revision}"
    if locked and asked != f"{locked.hub_id} at {locked.revision}":
        say(f"{name}: the lock holds {locked.hub_id} at {locked.revision}, the recipe names {asked}: resolving anew")
        locked = None
    if locked and locked.hub_files == source.hub_files:
        commit = locked.commit
        chosen = [HubFile(file.name.removeprefix(f"{name}/"), file.bytes, file.sha256) for file in locked.files]
    else:
        commit, there = hub.resolve(Repository(name, source.hub_id), locked.commit if locked else source.revision)
        chosen = _chosen(name, source, there)
    files = [(file, folder / _raw_name(name, file)) for file in chosen]
    return _Plan(name, source, commit, files, [(file, path) for file, path in files if not file.is_at(path)])


def _chosen(name: str, source: SourceConfig, there: Sequence[HubFile]) -> list[HubFile]:
    chosen = [file for file in there if any(fnmatchcase(file.path, pattern) for pattern in source.hub_files)]
    if not chosen:
        listed = ", ".join(sorted(file.path for file in there)[:10]) or "nothing"
        raise ConfigError(
            f"source {name}: {source.hub_id} has no file that matches {', '.join(source.hub_files)}; it has {listed}",
            hint=f"set sources.{name}.hub_files=[…]",
        )
    return sorted(chosen, key=lambda file: file.path)


def _raw_name(name: str, file: HubFile) -> str:
    try:
        return raw_name(name, file.path)
    except ValueError as error:
        raise DataError(f"source {name}: {error}", hint="do not trust this repository") from None


def _fetch_source(hub: Hub, folder: Path, plan: _Plan, count: Callable[[int], None]) -> LockedSource:
    """Download the missing files; returns the lock's entry for the source."""
    source, repository = plan.source, Repository(plan.name, plan.source.hub_id)
    for file, path in plan.missing:
        hub.download(repository, plan.commit, file, path, count)
    files = tuple(
        LockedFile(path.relative_to(folder).as_posix(), size_of(path), file_sha256(path)) for _, path in plan.files
    )
    return LockedSource(source.hub_id, source.revision, source.hub_files, plan.commit, source.license, files)


def _remove_left_over(folder: Path, before: LockedSource | None, now: LockedSource, say: Say) -> None:
    """Remove files of an earlier fetch that the new commit lacks, since a build would still read them."""
    names = {file.name for file in now.files}
    for file in before.files if before else ():
        path = folder / file.name
        if file.name not in names and path.is_file() and file_sha256(path) == file.sha256:
            path.unlink()
            say(f"{file.name}: removed, commit {now.commit[:12]} has no such file")


@contextmanager
def _counting(missing: Sequence[tuple[HubFile, Path]], folder: Path) -> Iterator[Callable[[int], None]]:
    """Check that the disk has enough space, then show the progress of the download."""
    num_bytes = sum(file.num_bytes for file, _ in missing)
    num_there = sum(size_of(file.part(path)) for file, path in missing)
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes - num_there > free_bytes:
        raise StorageError(
            f"{num_bytes - num_there:,} bytes to download, {free_bytes:,} free",
            on=folder,
            hint="free disk space, or name another sources_dir",
        )
    if not missing:
        yield lambda _: None
        return
    with progress("fetch", _rounded_up(num_bytes), unit="MB", start=_rounded_up(num_there)) as advance:
        yield _in_megabytes(advance, num_there)


def _in_megabytes(advance: Advance, num_bytes: int) -> Callable[[int], None]:
    def count(change: int) -> None:
        nonlocal num_bytes
        before, num_bytes = num_bytes, num_bytes + change
        if _rounded_up(num_bytes) != _rounded_up(before):
            advance(_rounded_up(num_bytes) - _rounded_up(before), "")

    return count


def _rounded_up(num_bytes: int) -> int:
    return -(-num_bytes // MB)
