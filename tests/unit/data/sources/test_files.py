"""Raw files: every format and compression gives the same rows, and a damaged file is named."""

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from backports import zstd

from sft.chat.conversation import Drop, Reason
from sft.data.sources import json_array
from sft.data.sources.files import find_files, identify, read_rows
from sft.data.sources.json_array import array_items
from sft.data.sources.rows import parse
from sft.errors import DataError, StorageError

ROWS: list[dict[str, Any]] = [
    {"user": "Hi", "assistant": "Yo.", "score": 1.5, "tags": ["a", "b"], "deep": {"n": 1, "none": None}},
    {
        "user": "Grüße 你好 🙂\n\u2028",
        "assistant": '"\\/<|USER|>',
        "score": -2.0,
        "tags": [],
        "deep": {"n": 2, "none": None},
    },
    {"user": "x" * 5000, "assistant": "\u0000\t", "score": 0.0, "tags": ["c"], "deep": {"n": 2**40, "none": None}},
]


def as_array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return bytes(sink.getvalue())


FORMATS: dict[str, tuple[str, Callable[[list[Any]], bytes]]] = {
    "array": ("rows.json", as_array),
    "one-line array": ("rows.json", lambda rows: json.dumps(rows).encode()),
    "lines in .json": ("rows.json", as_lines),
    "lines": ("rows.jsonl", as_lines),
    "lines with \\r\\n": ("rows.jsonl", lambda rows: as_lines(rows).replace(b"\n", b"\r\n")),
    "lines, no last newline": ("rows.jsonl", lambda rows: as_lines(rows).rstrip(b"\n")),
    "parquet": ("rows.parquet", as_parquet),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
}


def read(path: Path, content: bytes) -> list[tuple[int, Any]]:
    """Number and parsed form of each row of a file with this content."""
    path.write_bytes(content)
    return [(number, parse(raw)) for number, raw in read_rows(path)]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_and_compression_gives_the_same_rows(form: str, suffix: str, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    found = read(tmp_path / (name + suffix), COMPRESSIONS[suffix](write(ROWS)))
    assert found == list(enumerate(ROWS))


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n ", b" \r\n\t"], ids=repr)
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_byte_order_mark_or_blanks_before_an_array_are_no_content(mark: bytes, suffix: str, tmp_path: Path) -> None:
    assert read(tmp_path / f"rows.json{suffix}", COMPRESSIONS[suffix](mark + as_array(ROWS))) == list(enumerate(ROWS))


def test_a_byte_order_mark_before_lines_is_no_content(tmp_path: Path) -> None:
    assert read(tmp_path / "rows.jsonl", b"\xef\xbb\xbf" + as_lines(ROWS)) == list(enumerate(ROWS))


def test_a_row_s_number_is_its_line(tmp_path: Path) -> None:
    found = read(tmp_path / "rows.jsonl", b'{"n": 0}\n\n   \n{"n": 3}\n\r\n{"n": 5}\n\n')
    assert found == [(0, {"n": 0}), (3, {"n": 3}), (5, {"n": 5})]


def test_blank_lines_at_the_start_count_as_well(tmp_path: Path) -> None:
    assert read(tmp_path / "rows.jsonl", b'\n\n{"n": 2}\n{"n": 3}\n') == [(2, {"n": 2}), (3, {"n": 3})]


@pytest.mark.parametrize("content", [b"[]", b" [ ] \n", b"\n\n", b"  "], ids=repr)
def test_a_file_without_rows_has_none(content: bytes, tmp_path: Path) -> None:
    assert read(tmp_path / "rows.json", content) == []


def test_rows_are_streamed_not_loaded(tmp_path: Path) -> None:
    """The first rows come although the file is damaged later on."""
    path = tmp_path / "rows.json"
    path.write_bytes(as_array(ROWS)[:-1].rstrip() + b", {")
    rows = read_rows(path)
    assert next(rows) == (0, ROWS[0])
    with pytest.raises(DataError, match="after row 2"):
        list(rows)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("length", [8, 9, 10, 17, 18, 19, 27, 1000])
def test_of_a_line_that_is_too_long_only_the_start_is_held(length: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    lines = [b'{"a":1}\n', b"x" * (length - 1) + b"\n", b"\n", b'{"a":2}\n', b"y" * length]
    path.write_bytes(COMPRESSIONS[suffix](b"".join(lines)))
    assert list(read_rows(path, max_bytes=8)) == [(0, lines[0]), (1, lines[1][:9]), (3, lines[3]), (4, lines[4][:9])]


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("form", ["array", "lines", "parquet"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_cut_download_is_named(form: str, suffix: str, share: float, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    path = tmp_path / (name + suffix)
    content = COMPRESSIONS[suffix](write(ROWS * 40))
    with pytest.raises(DataError, match="damaged or cut short") as caught:
        read(path, content[: int(len(content) * share)])
    assert str(path) in str(caught.value)
    assert "download it again" in str(caught.value)


@pytest.mark.parametrize("form", ["array", "parquet"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_cut_file_that_has_an_end_is_named(form: str, share: float, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    content = write(ROWS * 40)
    with pytest.raises(DataError, match="damaged or cut short"):
        read(tmp_path / name, content[: int(len(content) * share)])


def test_cut_lines_end_in_a_row_that_is_refused(tmp_path: Path) -> None:
    *whole, (number, last) = read(tmp_path / "rows.jsonl", as_lines(ROWS)[:-20])
    assert whole == list(enumerate(ROWS[:2]))
    assert isinstance(last, Drop)
    assert (number, last.reason) == (2, Reason.INVALID_JSON)


NOT_THE_FORMAT = {
    "rows.json.gz": b"[{}]",
    "rows.json.zst": b"[{}]",
    "rows.parquet": b"[{}]",
    "rows.parquet.gz": gzip.compress(b"[{}]", mtime=0),
    "garbage.json": b'[{"a": 1}] and more',
    "quotes.json": b"[{'a': 1}]",
    "comma.json": b'[{"a": 1},]',
    "open.json": b"[",
    "utf8.json": b'[{"a": "\xff"}]',
}


@pytest.mark.parametrize(("name", "content"), NOT_THE_FORMAT.items(), ids=list(NOT_THE_FORMAT))
def test_a_file_that_is_not_in_its_format_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged or cut short") as caught:
        read(tmp_path / name, content)
    assert name in str(caught.value)


def test_the_place_of_the_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="before the first row"):
        read(tmp_path / "rows.json", b"[nonsense]")
    with pytest.raises(DataError, match="after row 1"):
        read(tmp_path / "rows.json", b"[{}, {}, nonsense]")


@pytest.mark.parametrize("flip", range(20))
def test_a_flipped_bit_in_a_compressed_file_is_not_a_shorter_file(flip: int, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(as_lines(ROWS * 20), mtime=0))
    place = 10 + (len(content) - 10) * flip // 20
    content[place] ^= 1 << flip % 8
    with pytest.raises(DataError):
        read(tmp_path / "rows.jsonl.gz", bytes(content))


@pytest.mark.parametrize("depth", [20_000, 100_000])
def test_an_array_that_is_too_deep_to_read_is_named(depth: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged or cut short after row 0") as caught:
        read(tmp_path / "rows.json", b'[{"a": 1}, {"a": ' + b"[" * depth + b"]" * depth + b"}]")
    assert "rows.json" in str(caught.value)


# What JSON can spell: an array's rows must come out as the same rows would from lines.
SPELT = [
    '"\\ud83d\\ude00"',
    '"\\u0000"',
    "1.0",
    "1E5",
    "-0",
    "0.1",
    "9223372036854775807",
    '"a\\/b"',
    "true",
    '{"x": [null]}',
]
SPELT_DIFFERENTLY = {
    '"\\ud800"': "a lone half of a character comes out of an array as '?', and is refused in a line",
    '"\\udc00"': "a lone half of a character refuses the whole array, but only one line",
    "123456789012345678901234567890": "a number beyond 64 bits refuses the whole array",
}


def spelt(value: str, tmp_path: Path) -> tuple[list[Any], list[Any]]:
    row = f'{{"a": {value}}}'.encode()
    return read(tmp_path / "a.json", b"[" + row + b"]"), read(tmp_path / "a.jsonl", row)


@pytest.mark.parametrize("value", SPELT)
def test_a_value_in_an_array_is_the_value_in_a_line(value: str, tmp_path: Path) -> None:
    in_array, in_line = spelt(value, tmp_path)
    assert in_array == in_line
    assert type(in_array[0][1]["a"]) is type(in_line[0][1]["a"])


@pytest.mark.parametrize("value", SPELT_DIFFERENTLY)
def test_a_strange_value_in_an_array_is_the_value_in_a_line(value: str, tmp_path: Path) -> None:
    in_array, in_line = spelt(value, tmp_path)
    assert in_array == in_line


# ------------------------------------------------------------------------------------------------ large files

# All that a piece of text can be cut in.
CUT_ANYWHERE = [
    {"literals": [True, False, None, float("inf"), -float("inf")], "numbers": [-1, 0.5, -1.5e-300, 1e300, 10**30]},
    {"escapes": '"\\\\/\n\u2028 \U0001f642 ' * 3, "": {"empty": [{}, [], ""]}},
    -17,
    "x" * 300,
]


@pytest.mark.parametrize("indent", [None, 1, 40])
@pytest.mark.parametrize("chunk", range(1, 40))
def test_an_array_may_be_cut_into_pieces_anywhere(
    chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "CHUNK_CHARACTERS", chunk)
    content = json.dumps(CUT_ANYWHERE, indent=indent).encode()
    assert list(array_items(io.BytesIO(content), max_characters=10_000)) == CUT_ANYWHERE


class StaysOpen(io.BytesIO):
    """Tells where it stands even after its reader is gone."""

    def close(self) -> None:
        pass


MISTAKES = {
    "Expecting ',' delimiter, 8 characters into the item": b'{"a": 1 "b": 2}',
    "Expecting ':' delimiter, 5 characters": b'{"a" 1}',
    "Expecting value, 6 characters": b'{"a": truth}',
    "Expecting property name": b"{'a': 1}",
    "Invalid control character": b'{"a": "\n"}',
    "Invalid .*escape": b'{"a": "\\x"}',
}


@pytest.mark.parametrize("complaint", MISTAKES)
def test_a_mistake_in_an_array_is_told_where_it_stands(complaint: str) -> None:
    """Not after the rest of the file was read in the hope that it heals."""
    stream = StaysOpen(b'[{"a": 1}, ' + MISTAKES[complaint] + b', {"a": 1}' * 300_000 + b"]")
    items = array_items(stream, max_characters=1 << 26)
    assert next(items) == {"a": 1}
    with pytest.raises(ValueError, match=complaint):
        next(items)
    assert stream.tell() < 1_200_000


@pytest.mark.parametrize(("length", "fits"), [(99, True), (100, False), (101, False), (5000, False)])
@pytest.mark.parametrize("chunk", [7, 100, 1 << 20])
def test_an_item_of_an_array_has_a_limit(length: int, fits: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "CHUNK_CHARACTERS", chunk)
    item = "x" * (length - 2)
    items = array_items(io.BytesIO(json.dumps([1, item, 2]).encode()), max_characters=100)
    assert next(items) == 1
    if fits:
        assert list(items) == [item, 2]
    else:
        with pytest.raises(ValueError, match="an item of 100 characters or more"):
            next(items)


def test_an_item_without_an_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """Two million characters of four bytes each are allowed here, and 5 times as many are there."""
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": 1}, {"a": "' + "🙂".encode() * 10_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="after row 0: an item of 2,000,000 characters or more") as caught:
            list(read_rows(path, max_bytes=500_000))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["rows.parquet", "odd [1] *?.parquet", "rows.parquet/rows.parquet"])
def test_a_parquet_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    assert read(tmp_path / name, as_parquet(ROWS)) == list(enumerate(ROWS))


@pytest.mark.parametrize("num_rows", [0, 1, 999, 1000, 1001, 2500])
def test_the_rows_of_a_parquet_file_are_numbered_across_its_batches(num_rows: int, tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"n": pa.array(range(num_rows), pa.int64())}), sink, row_group_size=700)
    found = read(tmp_path / "rows.parquet", bytes(sink.getvalue()))
    assert found == [(number, {"n": number}) for number in range(num_rows)]


def test_a_flipped_bit_in_a_parquet_file_with_checksums_is_named(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": ["a fine text"]})
    parquet.write_table(table, sink, write_page_checksum=True, compression="none", write_statistics=False)
    content = bytes(sink.getvalue()).replace(b"a fine text", b"a fine tent", 1)
    with pytest.raises(DataError, match="damaged or cut short"):
        read(tmp_path / "rows.parquet", content)


def test_a_date_that_python_cannot_hold_is_named(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"day": pa.array([2**31 - 1], pa.int32()).cast(pa.date32())}), sink)
    with pytest.raises(DataError, match="before the first row"):
        read(tmp_path / "rows.parquet", bytes(sink.getvalue()))


# ------------------------------------------------------------------------------------------------ finding files


def test_a_pattern_finds_files_and_their_compressed_forms_in_order(tmp_path: Path) -> None:
    for name in ("b.json", "a.json.gz", "c.json.zst", "d.json.bz2", "x.txt", ".hidden.json", "sub/e.json", "f.json/g"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"[]")
    found = find_files(tmp_path, ["*.json", "a*", "**/e.json"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a.json.gz",
        "b.json",
        "c.json.zst",
        "sub/e.json",
    ]
    assert find_files(tmp_path, ["*.csv"]) == []


def test_a_file_that_is_there_plain_and_compressed_is_refused(tmp_path: Path) -> None:
    for name in ("a.json", "a.json.gz"):
        (tmp_path / name).write_bytes(b"[]")
    with pytest.raises(DataError, match="plain and compressed"):
        find_files(tmp_path, ["*.json"])


@pytest.mark.parametrize("pattern", ["*.json", "rows.json", "rows*", "**/rows.json"])
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_link_that_points_to_nothing_is_named(pattern: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(b"[]")
    (tmp_path / f"rows.json{suffix}").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="is a broken link") as caught:
        find_files(tmp_path, [pattern])
    assert f"rows.json{suffix}" in str(caught.value)
    assert "fetch" in str(caught.value)


def test_a_link_to_a_file_is_found_and_one_to_a_folder_or_that_nobody_asked_for_is_not(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"[]")
    (tmp_path / "a.json").symlink_to("blob")
    (tmp_path / "folder.json").symlink_to(tmp_path)
    (tmp_path / "b.txt").symlink_to("gone")
    (tmp_path / ".c.json").symlink_to("gone")
    assert find_files(tmp_path, ["*.json"]) == [tmp_path / "a.json"]


@pytest.mark.parametrize("method", ["open", "stat"])
def test_a_file_that_cannot_be_read_is_named(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}")
    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(StorageError, match="cannot be read: Permission denied") as caught:
        identify(path, tmp_path)
    assert str(path) in str(caught.value)


def test_a_file_is_identified_by_place_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.json"
    path.parent.mkdir()
    path.write_bytes(b"[]")
    found = identify(path, tmp_path)
    assert (found.path, found.name, found.num_bytes) == (path, "sub/a.json", 2)
    assert found.sha256 == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2467981\n"


@pytest.mark.parametrize(
    ("content", "complaint", "hint"),
    [(b"", "is empty", "download"), (POINTER, "Git LFS pointer", "git lfs pull")],
)
def test_a_file_that_holds_no_data_is_named(content: bytes, complaint: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint) as caught:
        identify(path, tmp_path)
    assert str(path) in str(caught.value)
    assert hint in str(caught.value)
