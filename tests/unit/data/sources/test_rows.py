"""A raw row becomes a mapping, or a reason why it is none."""

import datetime
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.chat.conversation import Drop, Reason
from sft.data.sources.rows import EXCERPT_CHARACTERS, excerpt, parse

GOOD: list[tuple[Any, dict[str, Any]]] = [
    (b'{"a": 1}\n', {"a": 1}),
    (b'{"a": "\\u00fc\\n"}', {"a": "ü\n"}),
    (b'\xef\xbb\xbf{"a": 1}\r\n', {"a": 1}),
    (b'  {"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
    ('{"a": "\\ud83d\\ude00 🙂"}'.encode(), {"a": "😀 🙂"}),
    (b"{}", {}),
    (b'{"a": 1, "a": 2}', {"a": 2}),
    ({"a": [1, None, "ü"]}, {"a": [1, None, "ü"]}),
]
BAD: list[tuple[Any, Reason, str]] = [
    (b'{"a": "\xff"}', Reason.INVALID_UTF8, "byte 7"),
    (b'\xff\xfe{\x00"\x00', Reason.INVALID_UTF8, "byte 0"),
    ('{"a": "ü"}'.encode("latin-1"), Reason.INVALID_UTF8, "byte 7"),
    (b'{"a": "\xed\xa0\x80"}', Reason.INVALID_UTF8, "byte 7"),
    (b'{"a": "\\ud800"}', Reason.INVALID_UTF8, "lone surrogate"),
    (b'{"\\udfff": 1}', Reason.INVALID_UTF8, "lone surrogate"),
    (b'{"a": [{"b": "x\\ud800y"}]}', Reason.INVALID_UTF8, "lone surrogate"),
    (b'{"a": 1', Reason.INVALID_JSON, "column"),
    (b"", Reason.INVALID_JSON, "column"),
    (b"{'a': 1}", Reason.INVALID_JSON, "column"),
    (b'{"a": 1} {"b": 2}', Reason.INVALID_JSON, "Extra data"),
    (b'{"a": "line\nbreak"}', Reason.INVALID_JSON, "control character"),
    (b'{"a": ' + b"9" * 5000 + b"}", Reason.INVALID_JSON, "digits"),
    (b"<html>", Reason.INVALID_JSON, "column"),
    (b"[" * 100_000 + b"]" * 100_000, Reason.INVALID_JSON, "recursion"),
    (b"[1]", Reason.WRONG_SCHEMA, "list, expected an object"),
    (b'"text"', Reason.WRONG_SCHEMA, "str, expected an object"),
    (b"null", Reason.WRONG_SCHEMA, "NoneType, expected an object"),
    ([1], Reason.WRONG_SCHEMA, "list, expected an object"),
    ("text", Reason.WRONG_SCHEMA, "str, expected an object"),
    ({"a": "\ud800"}, Reason.INVALID_UTF8, "lone surrogate"),
    ({"a": b"bytes"}, Reason.WRONG_SCHEMA, "not JSON"),
    ({"a": datetime.datetime(2023, 4, 20)}, Reason.WRONG_SCHEMA, "not JSON"),
]


def label(value: object) -> str:
    return repr(value)[:40]


@pytest.mark.parametrize(("raw", "row"), GOOD, ids=label)
def test_a_json_object_is_a_row(raw: Any, row: dict[str, Any]) -> None:
    assert parse(raw) == row


@pytest.mark.parametrize(("raw", "reason", "detail"), BAD, ids=label)
def test_anything_else_is_refused_with_the_reason(raw: Any, reason: Reason, detail: str) -> None:
    found = parse(raw)
    assert isinstance(found, Drop)
    assert found.reason is reason
    assert detail in found.detail


@pytest.mark.parametrize(("length", "limit", "kept"), [(20, 20, True), (21, 20, False), (20, 1, False), (20, 99, True)])
def test_a_line_of_more_bytes_than_allowed_is_refused_unread(length: int, limit: int, kept: bool) -> None:
    found = parse(b'{"a":"' + b"x" * (length - 8) + b'"}', limit)
    assert found == ({"a": "x" * (length - 8)} if kept else Drop(Reason.ROW_TOO_LARGE, f"more than {limit} bytes"))


def test_damage_behind_the_limit_is_no_damage() -> None:
    assert parse(b"<html>" * 9, 20) == Drop(Reason.ROW_TOO_LARGE, "more than 20 bytes")


def as_the_standard_library_reads(line: bytes) -> object:
    """The row as text, with the type of every value to be seen, or the reason."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeError:
        return Reason.INVALID_UTF8
    except ValueError:
        return Reason.INVALID_JSON
    return repr(row) if isinstance(row, dict) else Reason.WRONG_SCHEMA


STRANGE = [
    b'{"a": -0.0, "b": [1e5, 1E-7, 123456789012345678901234567890, 1e400, 5e-324, 0.1, -0]}',
    b'{"n": 9223372036854775808, "m": -9223372036854775809, "k": 18446744073709551616, "i": 9007199254740993.0}',
    b'{"a": "\\ud83d\\ude00", "b": "\\u0000\\/\\b", "a": null}',
    '{"ü": "é你好👩‍💻\\u00e9\\n", "": {"b": [null, true, false, {}]}}'.encode(),
    b'\xef\xbb\xbf {"x": NaN, "y": Infinity, "z": -Infinity}\r\n',
]
INSERTED = [bytes([byte]) for byte in b'{}[]",:\\u0159eE+-. \t\n\x00\x1f\x7f\xff\xc3\xa9'] + [
    b"\\ud800",
    b"\xed\xa0\x80",
]


@pytest.mark.parametrize("seed", range(20))
def test_a_line_is_read_as_the_standard_library_reads_it(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        line = rng.choice(STRANGE)
        for _ in range(rng.randrange(4)):
            place = rng.randrange(len(line))
            line = line[:place] + rng.choice([b"", *INSERTED]) + line[place + rng.randrange(2) :]
        found = parse(line)
        assert (found.reason if isinstance(found, Drop) else repr(found)) == as_the_standard_library_reads(line), line


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(row=st.dictionaries(st.text(), JSON, max_size=4), escaped=st.booleans())
def test_any_json_object_reads_back_equal(row: dict[str, Any], escaped: bool) -> None:
    assert parse(json.dumps(row, ensure_ascii=escaped).encode()) == row
    assert parse(row) == row


@given(
    raw=st.binary(max_size=40)
    | st.text(max_size=20).map(lambda text: f'{{"{text}": 1}}'.encode("utf-8", "surrogatepass"))
)
def test_no_bytes_stop_the_build(raw: bytes) -> None:
    found = parse(raw)
    assert isinstance(found, Drop) or json.dumps(found, ensure_ascii=False).encode("utf-8")


@given(
    raw=st.binary(max_size=2000) | st.dictionaries(st.text(st.characters(), max_size=9), JSON | st.binary(), max_size=3)
)
def test_an_excerpt_is_short_and_can_be_written_down(raw: Any) -> None:
    found = excerpt(raw)
    assert len(found) <= EXCERPT_CHARACTERS
    assert found.encode("utf-8").decode("utf-8") == found


@pytest.mark.parametrize(
    ("raw", "start"),
    [
        (b'{"a": "\xff' + b"x" * 999, '{"a": "\ufffdxx'),
        ({"a": "ü" * 999}, '{"a": "üü'),
        ({"a": "\ud800"}, '{"a": "?"}'),
    ],
    ids=label,
)
def test_an_excerpt_shows_the_start(raw: Any, start: str) -> None:
    assert excerpt(raw).startswith(start)
