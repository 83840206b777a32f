"""sources.lock.json: the repository and commit of the raw files, and the hash of each file.

`sft fetch` writes it and restores the files that it lists; a build refuses raw files that differ from it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sft.data.manifest import renamed
from sft.data.sources.files import SourceFile
from sft.errors import DataError
from sft.storage.atomic import write_text
from sft.storage.json_file import read_json, readable

LOCK = "sources.lock.json"
SCHEMA_VERSION = 1
MAX_SHOWN = 3
HINT = (
    "restore the locked files with `sft fetch` and move others away; "
    "if the change is intended, delete the source's entry in the lock"
)


@dataclass(frozen=True)
class LockedFile:
    """One raw file; `name` is its path below sources_dir."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LockedSource:
    """The repository, revision and patterns of one source, and the commit and files that they were resolved to."""

    hub_id: str
    revision: str
    hub_files: tuple[str, ...]
    commit: str
    license: str
    files: tuple[LockedFile, ...]


Lock = dict[str, LockedSource]


def write_lock(sources_dir: Path, lock: Mapping[str, LockedSource]) -> None:
    """Replace the lock of a folder of raw files; equal content gives equal bytes."""
    sources = {name: asdict(source) for name, source in lock.items()}
    content = {"schema_version": SCHEMA_VERSION, "sources": sources}
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(sources_dir / LOCK, text + "\n")


def read_lock(sources_dir: Path) -> Lock:
    """The lock of a folder of raw files, empty if it has none.

    Raises: DataError if it is damaged, of another version, or names a file outside its source's folder.
    """
    path = sources_dir / LOCK
    hint = "restore it, or delete it and run `sft fetch` to pin what the hub has now"
    with readable(path, hint=hint):
        try:
            content = read_json(path)
        except FileNotFoundError:
            return {}
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        hint = "use the version of sft that wrote it" if isinstance(version, int) else hint
        raise DataError(f"schema version {version!r}, this program reads {SCHEMA_VERSION}", on=path, hint=hint)
    with readable(path, what="not a lock of sources", hint=hint):
        return {str(name): _source(str(name), facts) for name, facts in content["sources"].items()}


def require_locked(sources_dir: Path, files: Mapping[str, Sequence[SourceFile]]) -> None:
    """Make sure that the raw files of every locked source are the locked ones.

    A source that is not in the lock passes, and so does a locked file that exists but does not match the recipe's
    patterns.

    Raises: DataError naming the files that are missing, changed, or not in the lock.
    """
    lock = read_lock(sources_dir)
    wrong = [
        sentence for name, found in files.items() if name in lock for sentence in _wrong(sources_dir, lock[name], found)
    ]
    if wrong:
        more = f"; and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
        raise DataError("; ".join(wrong[:MAX_SHOWN]) + more, on=sources_dir / LOCK, hint=HINT)


def raw_name(source: str, path: str) -> str:
    """The path below sources_dir of a file of a hub repository.

    Raises: ValueError if the path is not inside the source's folder.
    """
    if not path or "\\" in path or not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} is not a path inside a repository")
    return f"{source}/{path}"


def _wrong(sources_dir: Path, locked: LockedSource, found: Sequence[SourceFile]) -> list[str]:
    recorded = {file.name: file for file in locked.files}
    there = {file.name for file in found}
    sentences = []
    for file in found:
        twin = recorded.get(file.name)
        if twin is None:
            sentences.append(f"{file.name} (sha256 {file.sha256[:12]}…) is not in the lock")
        elif (twin.sha256, twin.bytes) != (file.sha256, file.num_bytes):
            sentences.append(
                f"{file.name} has sha256 {file.sha256[:12]}… ({file.num_bytes} bytes), "
                f"locked is {twin.sha256[:12]}… ({twin.bytes} bytes)"
            )
    for twin in locked.files:
        if twin.name not in there and not (sources_dir / twin.name).is_file():
            sentences.append(f"{twin.name} is missing, locked with sha256 {twin.sha256[:12]}…")
    return sentences


def _source(name: str, recorded: Mapping[str, Any]) -> LockedSource:
    facts = renamed(recorded)
    _require_keys(name, facts, LockedSource)
    for key in ("hub_id", "revision", "license"):
        if not isinstance(facts[key], str):
            raise ValueError(f"{name}.{key} is {facts[key]!r}, expected text")
    if not re.fullmatch(r"[0-9a-f]{40}", facts["commit"]):
        raise ValueError(f"{name}.commit is {facts['commit']!r}, expected 40 hex digits")
    if not isinstance(facts["hub_files"], list) or not all(isinstance(item, str) for item in facts["hub_files"]):
        raise ValueError(f"{name}.hub_files is {facts['hub_files']!r}, expected a list of patterns")
    files = tuple(_file(name, item) for item in facts["files"])
    if len({file.name for file in files}) != len(files):
        raise ValueError(f"{name}.files names a file twice")
    return LockedSource(**{**facts, "hub_files": tuple(facts["hub_files"]), "files": files})


def _file(source: str, facts: Mapping[str, Any]) -> LockedFile:
    _require_keys(f"{source}.files", facts, LockedFile)
    name, size, digest = facts["name"], facts["bytes"], facts["sha256"]
    folder, _, path = name.partition("/")
    if folder != source or PurePosixPath(raw_name(source, path)).as_posix() != name:
        raise ValueError(f"{name!r} is not below {source}/")
    if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"{name}: expected its bytes and its sha256, got {size!r} and {digest!r}")
    return LockedFile(name, size, digest)


def _require_keys(place: str, facts: Mapping[str, Any], kind: type) -> None:
    expected = set(kind.__annotations__)
    if set(facts) != expected:
        raise ValueError(f"{place} has the keys {sorted(facts)}, expected {sorted(expected)}")
