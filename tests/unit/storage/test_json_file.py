"""A JSON file is read, or the error says which file and why."""

from pathlib import Path
from typing import Any

import pytest

from sft.errors import DataError, SftError, StorageError
from sft.storage.json_file import flat, read_json, readable, unequal


def test_a_value_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"ä": [1, null]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"ä": [1, None]}


BROKEN: dict[str, bytes | None] = {
    "No such file": None,
    "Expecting value": b"",
    "Expecting property name": b"{",
    "can't decode byte": b"\xff\xfe",
    "'steps' is missing": b"{}",
    "not subscriptable": b"1",
    "recursion": b"[" * 100_000,
}


@pytest.mark.parametrize(("reason", "content"), BROKEN.items(), ids=BROKEN)
@pytest.mark.parametrize("kind", [DataError, StorageError])
def test_what_cannot_be_read_is_named_with_the_reason(
    kind: type[SftError], reason: str, content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    found: list[Any] = []
    with pytest.raises(kind) as caught, readable(path, kind, what="no run", hint="restore it"):
        found.append(read_json(path)["steps"])
    assert caught.value.what.startswith("no run: ")
    assert reason in caught.value.what
    assert (caught.value.on, caught.value.hint) == (path, "restore it")


def test_nested_values_are_told_by_their_paths() -> None:
    values = {"a": {"b": {"c": 1, "d": [2]}, "e": None}, "f": {}, "g": "text"}
    assert dict(flat(values, "/")) == {"a/b/c": 1, "a/b/d": [2], "a/e": None, "g": "text"}


def test_what_differs_is_named_with_both_values() -> None:
    one, other = {"a": 1, "b": 2, "c": [1]}, {"b": 3, "c": [1], "d": 4}
    assert list(unequal(one, other)) == [("a", 1, None), ("b", 2, 3), ("d", None, 4)]


def test_an_error_of_ours_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"^full$"), readable(tmp_path):
        raise StorageError("full")
