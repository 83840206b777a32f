"""The lock of the raw files: exact, checked when read, and held against what a build finds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sft.data.sources.files import SourceFile, identify
from sft.data.sources.lockfile import LOCK, Lock, LockedFile, LockedSource, read_lock, require_locked, write_lock
from sft.errors import DataError
from sft.hashing import file_sha256

CONTENT = {"talks/a.jsonl": b"a\n", "talks/data/b.jsonl": b"bb\n", "other/c.jsonl": b"ccc\n"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder of raw files of two sources, with its lock."""
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_lock(tmp_path, lock_of(tmp_path))
    return tmp_path


def lock_of(folder: Path) -> Lock:
    lock = {}
    for source in ("talks", "other"):
        names = [name for name in CONTENT if name.startswith(source)]
        files = tuple(LockedFile(name, len(CONTENT[name]), file_sha256(folder / name)) for name in names)
        lock[source] = LockedSource("Someone/" + source, "main", ("*.jsonl",), "0f" * 20, "Größer GmbH", files)
    return lock


def found(folder: Path) -> dict[str, list[SourceFile]]:
    """What a build finds of the two sources."""
    return {
        name: [identify(path, folder) for path in sorted((folder / name).rglob("*")) if path.is_file()]
        for name in ("talks", "other")
    }


# ------------------------------------------------------------------------------------------------ reading and writing


def test_what_is_written_is_read(raw: Path) -> None:
    assert read_lock(raw) == lock_of(raw)


def test_a_folder_without_a_lock_has_an_empty_one(tmp_path: Path) -> None:
    assert read_lock(tmp_path) == {}
    require_locked(tmp_path, {"talks": []})


def test_the_bytes_depend_on_the_content_only(raw: Path) -> None:
    before = (raw / LOCK).read_bytes()
    write_lock(raw, dict(sorted(lock_of(raw).items())))
    assert (raw / LOCK).read_bytes() == before
    write_lock(raw, read_lock(raw))
    assert (raw / LOCK).read_bytes() == before
    assert b"Gr\xc3\xb6\xc3\x9fer" in before


def test_a_lock_of_before_the_license_had_its_name_is_still_read(raw: Path) -> None:
    before = (raw / LOCK).read_bytes()
    (raw / LOCK).write_bytes(before.replace(b'"license"', b'"licence"'))
    assert read_lock(raw) == lock_of(raw)
    write_lock(raw, read_lock(raw))
    assert (raw / LOCK).read_bytes() == before


def change(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["sources"]["talks"].update(changes)


def change_file(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["sources"]["talks"]["files"][0].update(changes)


# what is wrong, how it is made so, words of the message
DAMAGES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("newer version", lambda content: content.update(schema_version=2), r"schema version 2, .* reads 1"),
    ("no version", lambda content: content.pop("schema_version"), "schema version None"),
    ("no sources", lambda content: content.pop("sources"), "not a lock of sources: 'sources'"),
    ("sources as a list", lambda content: content.update(sources=[]), "not a lock of sources"),
    ("unknown key", change(mirror="x"), "'mirror'"),
    ("missing key", lambda content: content["sources"]["talks"].pop("license"), "expected .*'license'"),
    ("branch as commit", change(commit="main"), "commit is 'main', expected 40 hex digits"),
    ("commit no text", change(commit=None), "not a lock of sources"),
    ("hub_id no text", change(hub_id=3), "talks.hub_id is 3"),
    ("patterns as a text", change(hub_files="*.json"), "hub_files"),
    ("files no list", change(files=3), "not a lock of sources"),
    (
        "file twice",
        lambda content: (
            content["sources"]["talks"]["files"].reverse()
            or change_file(**content["sources"]["talks"]["files"][1])(content)
        ),
        "twice",
    ),
    ("hash too short", change_file(sha256="abc"), "talks/a.jsonl: expected its bytes and its sha256"),
    ("size as a truth", change_file(bytes=True), "talks/a.jsonl: expected its bytes"),
    ("negative size", change_file(bytes=-1), "talks/a.jsonl: expected its bytes"),
    ("another source's folder", change_file(name="other/c.jsonl"), "'other/c.jsonl' is not below talks/"),
    ("parent folder", change_file(name="talks/../../etc/passwd"), "not a path inside"),
    ("absolute path", change_file(name="/etc/passwd"), "is not below talks/"),
    ("absolute behind the folder", change_file(name="talks//etc/passwd"), "not a path inside"),
    ("backslashes", change_file(name="talks/..\\evil"), "not a path inside"),
    ("line break", change_file(name="talks/a\nb"), "not a path inside"),
]


@pytest.mark.parametrize(("damage", "words"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_a_damaged_lock_is_refused_by_name(damage: Callable[[Any], object], words: str, raw: Path) -> None:
    content = json.loads((raw / LOCK).read_text())
    damage(content)
    (raw / LOCK).write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        read_lock(raw)
    assert str(caught.value).startswith(str(raw / LOCK))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 1}', "\udcff"], ids=ascii)
def test_what_is_no_lock_is_refused_by_name(text: str, raw: Path) -> None:
    (raw / LOCK).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=LOCK):
        read_lock(raw)


# ------------------------------------------------------------------------------------------------ holding a build to it


def test_the_locked_files_pass_and_no_other_bytes_of_the_same_size_do(raw: Path) -> None:
    require_locked(raw, found(raw))
    path = raw / "other/c.jsonl"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(DataError, match=r"other/c\.jsonl"):
        require_locked(raw, found(raw))


def test_a_changed_file_is_shown_with_both_hashes(raw: Path) -> None:
    before = file_sha256(raw / "talks/a.jsonl")
    (raw / "talks/a.jsonl").write_bytes(b"b\n")
    after = file_sha256(raw / "talks/a.jsonl")
    with pytest.raises(DataError) as caught:
        require_locked(raw, found(raw))
    assert f"talks/a.jsonl has sha256 {after[:12]}… (2 bytes), locked is {before[:12]}… (2 bytes)" in str(caught.value)
    assert "sft fetch" in str(caught.value)
    assert "delete" in str(caught.value)


def test_a_size_that_contradicts_the_hash_is_told(raw: Path) -> None:
    files = found(raw)
    files["other"] = [replace(files["other"][0], num_bytes=5)]
    with pytest.raises(DataError, match=r"other/c.jsonl has .* \(5 bytes\), locked is .* \(4 bytes\)"):
        require_locked(raw, files)


def test_a_file_that_the_lock_does_not_name_is_refused(raw: Path) -> None:
    (raw / "talks/new.jsonl").write_bytes(b"new\n")
    with pytest.raises(DataError, match=r"talks/new.jsonl .* is not in the lock"):
        require_locked(raw, found(raw))


def test_a_locked_file_that_is_missing_is_refused(raw: Path) -> None:
    (raw / "talks/data/b.jsonl").unlink()
    with pytest.raises(DataError, match=r"talks/data/b.jsonl is missing, locked with"):
        require_locked(raw, found(raw))


def test_many_differences_are_counted_not_listed(raw: Path) -> None:
    for number in range(9):
        (raw / f"talks/new{number}.jsonl").write_bytes(b"new\n")
    with pytest.raises(DataError, match=r"new0.*new1.*new2.*; and 6 more") as caught:
        require_locked(raw, found(raw))
    assert "new3" not in str(caught.value)


def test_a_locked_file_that_the_recipe_does_not_look_for_passes(raw: Path) -> None:
    files = found(raw)
    require_locked(raw, {**files, "talks": files["talks"][:1]})
    (raw / files["talks"][1].name).unlink()
    with pytest.raises(DataError, match=f"{files['talks'][1].name} is missing"):
        require_locked(raw, {**files, "talks": files["talks"][:1]})


def test_a_source_that_the_lock_does_not_name_passes(raw: Path) -> None:
    both = lock_of(raw)
    write_lock(raw, {"other": both["other"]})
    (raw / "talks/a.jsonl").write_bytes(b"whatever\n")
    require_locked(raw, found(raw))
    write_lock(raw, both)
    with pytest.raises(DataError, match=r"talks/a\.jsonl"):
        require_locked(raw, found(raw))


def test_a_locked_source_that_is_not_built_is_not_looked_at(raw: Path) -> None:
    (raw / "talks/a.jsonl").unlink()
    require_locked(raw, {"other": found(raw)["other"]})
    with pytest.raises(DataError, match=r"talks/a\.jsonl is missing"):
        require_locked(raw, found(raw))
