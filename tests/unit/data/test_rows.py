"""A raw row becomes a mapping, or a reason why it is none."""

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.chat.conversation import Drop, Reason
from sft.data.rows import EXCERPT_CHARACTERS, excerpt, parse

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
