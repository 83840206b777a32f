"""manifest.json: what a published folder holds, with the sha256 of every file.

The hashes detect a flipped bit, which file formats do not. A folder without a manifest was not written by sft.
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from sft.errors import DataError
from sft.hashing import file_sha256, text_sha256
from sft.storage.atomic import write_text
from sft.storage.json_file import read_json, readable

MANIFEST = "manifest.json"
SELF = "manifest_sha256"
"""Key of the manifest's own hash, computed before the key is added."""

Manifest = dict[str, Any]
IsContent = Callable[[str], bool]
"""Whether a file, given its name, is part of the content and not only documentation of it."""


class FileFacts(TypedDict):
    """What a manifest records of a file."""

    bytes: int
    sha256: str


def file_facts(path: Path) -> FileFacts:
    """A file's manifest entry: its size and sha256."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def is_any(_name: str) -> bool:
    """Count every file as content."""
    return True


def write_manifest(
    folder: Path, kind: str, schema_version: int, facts: Mapping[str, Any], is_content: IsContent = is_any
) -> Manifest:
    """Hash every file in `folder` and write its manifest, the last file of the folder.

    The content digest covers only the files that `is_content` accepts, so editing a report or card does not change it.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    )
    with ThreadPoolExecutor() as pool:
        files = dict(zip(names, pool.map(lambda name: file_facts(folder / name), names), strict=True))
    return write_manifest_of(folder, kind, schema_version, facts, files, is_content)


def write_manifest_of(
    folder: Path,
    kind: str,
    schema_version: int,
    facts: Mapping[str, Any],
    files: Mapping[str, FileFacts],
    is_content: IsContent = is_any,
) -> Manifest:
    """Write the manifest of files whose sizes and hashes are known, the last file of the folder."""
    content = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(filter(is_content, files)))
    manifest = {
        "kind": kind,
        "schema_version": schema_version,
        "content_digest": text_sha256(content),
        **facts,
        "files": {name: files[name] for name in sorted(files)},
    }
    write_text(folder / MANIFEST, _text(manifest | {SELF: text_sha256(_text(manifest))}))
    return manifest


def read_manifest(folder: Path, kind: str, *schema_versions: int) -> Manifest:
    """The manifest of a folder of the given kind, in one of these versions.

    Raises: DataError if there is none, it is damaged, or it is of another kind or version.
    """
    path = folder / MANIFEST
    with readable(path):
        try:
            manifest = read_json(path)
        except FileNotFoundError:
            what = f"not a {kind} folder: it has no {MANIFEST}" if folder.exists() else "no such folder"
            raise DataError(what, on=folder, hint=f"name a folder that holds {kind}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        found = manifest.get("kind") if isinstance(manifest, dict) else None
        raise DataError(f"holds {found or 'something else'}, expected {kind}", on=folder)
    if manifest.get("schema_version") not in schema_versions:
        known = " or ".join(map(str, schema_versions))
        raise DataError(
            f"schema version {manifest.get('schema_version')}, this program reads {known}",
            on=path,
            hint="use the version of sft that wrote it, or build it again",
        )
    if manifest.pop(SELF, None) != text_sha256(_text(manifest)) or not _are_facts(manifest.get("files")):
        raise DataError("changed after it was written", on=path, hint="restore it or build again")
    return manifest


def _are_facts(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(facts, dict) and isinstance(facts.get("bytes"), int) and isinstance(facts.get("sha256"), str)
        for facts in files.values()
    )


def damaged_files(
    folder: Path, files: Mapping[str, FileFacts], *, unhashed: Container[str] = (), is_content: IsContent = is_any
) -> Iterator[str]:
    """One sentence for every file that differs from its manifest entry: missing, truncated, changed or added.

    The files in `unhashed` are not read, so a change that keeps their size goes unnoticed. Files that `is_content` does
    not accept are not checked.
    """
    recorded = {name: facts for name, facts in files.items() if is_content(name)}
    yield from _changed_files(folder, recorded, unhashed)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and name not in recorded and is_content(name):
            yield f"{name}: not in the manifest"


def refuse_damaged(folder: Path, damaged: Iterable[str]) -> None:
    """Raise a DataError if `damaged` holds a sentence."""
    if found := "; ".join(damaged):
        raise DataError(f"changed after the build: {found}", on=folder, hint="restore the files or build again")


class LateHashes:
    """Files of a published folder that are hashed on first use, each once."""

    def __init__(self, folder: Path, recorded: Mapping[str, FileFacts] | None = None) -> None:
        """`recorded` holds their manifest entries; other files are not checked."""
        self._folder, self._recorded = folder, dict(recorded or {})

    def check(self, names: Iterable[str]) -> None:
        """Hash those of these files that have not been hashed yet.

        Raises: DataError if one is missing or changed.
        """
        due = {name: self._recorded[name] for name in names if name in self._recorded}
        if due:
            refuse_damaged(self._folder, _changed_files(self._folder, due))
            self._recorded = {name: facts for name, facts in self._recorded.items() if name not in due}


def _changed_files(folder: Path, recorded: Mapping[str, FileFacts], unhashed: Container[str] = ()) -> Iterator[str]:
    with ThreadPoolExecutor() as pool:
        verdicts = pool.map(lambda name: _verdict(folder, name, recorded[name], name not in unhashed), recorded)
        yield from filter(None, verdicts)


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _verdict(folder: Path, name: str, facts: FileFacts, check_hashes: bool) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name}: missing"
    size = path.stat().st_size
    if size != facts["bytes"]:
        return f"{name}: {size} bytes, expected {facts['bytes']}"
    digest = file_sha256(path) if check_hashes else facts["sha256"]
    if digest != facts["sha256"]:
        return f"{name}: changed (sha256 {digest[:12]}…, expected {facts['sha256'][:12]}…)"
    return None
