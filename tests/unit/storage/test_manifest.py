"""The manifest notices every change of a published folder."""

import hashlib
import json
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest

from sft.errors import DataError
from sft.storage.manifest import MANIFEST, SELF, damaged_files, read_manifest, write_manifest

FILES = {"a.bin": bytes(range(256)) * 4, "b.txt": b"text\n", "deep/c.bin": b"\x00", "empty": b""}
KIND, VERSION = "things", 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published folder of four files."""
    place = tmp_path / "folder"
    write_files(place)
    write_manifest(place, KIND, VERSION, {"name": "four files", "numbers": [1, 2.5, None, "ü"]})
    return place


def write_files(place: Path) -> None:
    for name, content in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)


def damage(folder: Path, **options: Any) -> list[str]:
    return list(damaged_files(folder, read_manifest(folder, KIND, VERSION)["files"], **options))


def test_the_manifest_tells_what_was_written(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["kind"] == KIND
    assert manifest["schema_version"] == VERSION
    assert manifest["numbers"] == [1, 2.5, None, "ü"]
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(FILES.items())
    }
    assert read_manifest(folder, KIND, VERSION) == {key: manifest[key] for key in manifest if key != SELF}
    assert damage(folder) == []


def test_equal_folders_have_equal_manifests_wherever_they_are(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "copy"
    write_files(other)
    write_manifest(other, KIND, VERSION, {"name": "four files", "numbers": [1, 2.5, None, "ü"]})
    assert (other / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda place: (place / "a.bin").write_bytes(b"other"),
        lambda place: (place / "empty").rename(place / "renamed"),
        lambda place: (place / "more").write_bytes(b""),
        lambda place: (place / "empty").unlink(),
    ],
)
def test_the_content_digest_tells_contents_apart(change: Callable[[Path], None], folder: Path) -> None:
    before = read_manifest(folder, KIND, VERSION)["content_digest"]
    change(folder)
    assert write_manifest(folder, KIND, VERSION, {})["content_digest"] != before


@pytest.mark.parametrize("name", [name for name, content in FILES.items() if content])
def test_a_flipped_bit_is_noticed(name: str, folder: Path) -> None:
    for bit in range(0, 8 * len(FILES[name]), 101):
        content = bytearray(FILES[name])
        content[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(content)
        (found,) = damage(folder)
        assert found.startswith(f"{name}: changed")


def swap(folder: Path) -> None:
    (folder / "b.txt").rename(folder / "kept")
    (folder / "deep" / "c.bin").rename(folder / "b.txt")
    (folder / "kept").rename(folder / "deep" / "c.bin")


def replace_by_folder(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()


DAMAGE: list[tuple[str, Callable[[Path], object], list[str]]] = [
    ("cut", lambda place: (place / "a.bin").write_bytes(FILES["a.bin"][:-1]), ["a.bin: 1023 bytes, expected 1024"]),
    ("emptied", lambda place: (place / "b.txt").write_bytes(b""), ["b.txt: 0 bytes, expected 5"]),
    ("grown", lambda place: (place / "empty").write_bytes(b"x"), ["empty: 1 bytes, expected 0"]),
    ("missing", lambda place: (place / "deep" / "c.bin").unlink(), ["deep/c.bin: missing"]),
    ("missing folder", lambda place: shutil.rmtree(place / "deep"), ["deep/c.bin: missing"]),
    ("a folder instead", replace_by_folder, ["empty: missing"]),
    ("extra", lambda place: (place / "deep" / "new").write_bytes(b""), ["deep/new: not in the manifest"]),
    ("hidden extra", lambda place: (place / ".new").write_bytes(b""), [".new: not in the manifest"]),
    ("swapped", swap, ["b.txt: 1 bytes, expected 5", "deep/c.bin: 5 bytes, expected 1"]),
    ("renamed", lambda place: (place / "empty").rename(place / "e"), ["empty: missing", "e: not in the manifest"]),
]


@pytest.mark.parametrize(("_", "change", "expected"), DAMAGE, ids=[name for name, *_ in DAMAGE])
@pytest.mark.parametrize("unhashed", [(), FILES], ids=["hashed", "unhashed"])
def test_every_other_change_is_noticed_even_without_hashing(
    _: str, change: Callable[[Path], object], expected: list[str], unhashed: Container[str], folder: Path
) -> None:
    change(folder)
    assert sorted(damage(folder, unhashed=unhashed)) == sorted(expected)


def test_without_hashing_no_content_is_read(folder: Path) -> None:
    (folder / "a.bin").write_bytes(FILES["a.bin"][::-1])
    assert damage(folder, unhashed=["a.bin"]) == []
    assert damage(folder) != []


def test_all_damage_is_told_at_once(folder: Path) -> None:
    for name in FILES:
        (folder / name).write_bytes(b"other content")
    assert len(damage(folder)) == len(FILES)


BROKEN: dict[str, str | bytes] = {
    "not readable": b"\xff\xfe",
    "not readable:": "{",
    "holds something else, expected things": "[]",
    "holds something else, expected": "{}",
    "holds pictures, expected things": '{"kind": "pictures", "schema_version": 3}',
    "schema version 4, this program reads 3": '{"kind": "things", "schema_version": 4, "files": {}}',
    "schema version 2, this program reads 3": '{"kind": "things", "schema_version": 2, "files": {}}',
    "schema version None, this": '{"kind": "things", "files": {}}',
}


@pytest.mark.parametrize(("complaint", "content"), BROKEN.items())
def test_a_manifest_of_another_kind_or_version_is_refused(complaint: str, content: str | bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=complaint) as caught:
        read_manifest(folder, KIND, VERSION)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("place", ["no-such-folder", "folder/deep", "folder/b.txt"])
def test_a_folder_without_a_manifest_is_not_ours(place: str, folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_manifest(folder.parent / place, KIND, VERSION)
    assert str(folder.parent / place) in str(caught.value)


def test_a_number_that_json_cannot_hold_is_refused_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path, KIND, VERSION, {"loss": float("nan")})
    assert not (tmp_path / MANIFEST).exists()


def test_a_flipped_bit_in_the_manifest_itself_is_noticed(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    unnoticed = []
    for place in range(0, len(content), 11):
        flipped = bytes([*content[:place], content[place] ^ 1, *content[place + 1 :]])
        (folder / MANIFEST).write_bytes(flipped)
        try:
            if not damage(folder):
                unnoticed.append(place)
        except (DataError, KeyError):
            pass
    assert unnoticed == []


def test_a_manifest_without_its_list_of_files_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"kind": KIND, "schema_version": VERSION}))
    with pytest.raises(DataError):
        damage(folder)


def test_a_manifest_inside_a_subfolder_is_a_file_like_any_other(folder: Path) -> None:
    (folder / "deep" / MANIFEST).write_text("{}")
    write_manifest(folder, KIND, VERSION, {})
    assert damage(folder) == []
