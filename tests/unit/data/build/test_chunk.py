"""A finished chunk reads back as it was written, or is not there at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.chat.conversation import Reason
from sft.data.build.chunk import DOCUMENT_FIELDS, ChunkFile, ChunkResult, Rejected, write_chunk
from sft.data.dedup.minhash import NUM_BANDS
from sft.errors import StorageError

HASH_CHARACTERS = 64
LARGEST = {np.uint16: 2**16 - 1, np.uint32: 2**32 - 1}


def result(
    lengths: tuple[int, ...] = (5, 1, 9),
    num_signed: int = 2,
    rejected: tuple[Rejected, ...] = (),
    id_type: type[Any] = np.uint16,
) -> ChunkResult:
    """A chunk with documents of these lengths and everything else at random; the largest id is among the ids."""
    rng = np.random.default_rng(len(lengths))
    documents = np.zeros(len(lengths), DOCUMENT_FIELDS)
    for name in DOCUMENT_FIELDS.names or ():
        documents[name] = (
            rng.integers(0, 2, len(lengths)) if name == "truncated" else rng.integers(0, 2**16, len(lengths))
        )
    documents["digest"] = rng.integers(2**63, 2**64, len(lengths), np.uint64)
    documents["num_tokens"] = lengths
    ids = rng.integers(0, 2**16, sum(lengths)).astype(id_type)
    ids[:1] = LARGEST[id_type]
    return ChunkResult(
        source="täglich",
        file="folder/Übung \n 1.jsonl",
        num_rows=7,
        num_skipped=1,
        num_truncated=2,
        checked_share=0.25,
        changed={"personal_data": 3, "repair": 1},
        rejected=list(rejected),
        documents=documents,
        ids=ids,
        loss_mask=rng.integers(0, 2, sum(lengths), np.uint8),
        turn_starts=rng.integers(0, 2**16, 2 * len(lengths), np.uint16),
        bands=rng.integers(0, 2**64, (num_signed, NUM_BANDS), np.uint64),
    )


REJECTED = (
    Rejected(0, None, Reason.INVALID_JSON, "line 1 column 2", '{"a": \n\u2028'),
    Rejected(3, 2, Reason.TOO_LONG, "", 'emoji 🙂, NFD e\u0301, \x00, quote " and <|USER|>'),
)
RESULTS = {
    "documents, signatures and rejected rows": result(rejected=REJECTED),
    "wide ids": result(id_type=np.uint32, rejected=REJECTED),
    "no rejected row": result(),
    "no signatures": result(num_signed=0),
    "only rejected rows": result(lengths=(), num_signed=0, rejected=REJECTED),
    "nothing": result(lengths=(), num_signed=0),
    "one token": result(lengths=(1,), num_signed=1),
}


def written(folder: Path, item: ChunkResult) -> ChunkFile:
    write_chunk(folder / "chunk", item)
    chunk = ChunkFile.open(folder / "chunk")
    assert chunk is not None
    return chunk


@pytest.mark.parametrize("item", RESULTS.values(), ids=RESULTS)
def test_a_unit_reads_back_as_it_was_written(item: ChunkResult, tmp_path: Path) -> None:
    chunk = written(tmp_path, item)
    assert (chunk.source, chunk.file) == (item.source, item.file)
    facts = {
        name: chunk.header[name] for name in ("num_rows", "num_skipped", "num_truncated", "checked_share", "changed")
    }
    assert facts == {
        "num_rows": item.num_rows,
        "num_skipped": item.num_skipped,
        "num_truncated": item.num_truncated,
        "checked_share": item.checked_share,
        "changed": item.changed,
    }
    assert list(chunk.rejected()) == item.rejected
    for found, wanted in (
        (chunk.documents(), item.documents),
        (chunk.ids(), item.ids),
        (chunk.loss_mask(), item.loss_mask),
        (chunk.bands(), item.bands),
    ):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()


def test_only_the_unit_is_left_in_its_folder(tmp_path: Path) -> None:
    written(tmp_path, result(rejected=REJECTED))
    assert [path.name for path in tmp_path.iterdir()] == ["chunk"]


def test_equal_results_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_chunk(tmp_path / name, result(rejected=REJECTED))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_unit_replaces_a_damaged_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "chunk").write_bytes(b"half")
    assert written(tmp_path, result()).header["num_rows"] == 7


# ------------------------------------------------------------------------------------------------ damage


def everything(chunk: ChunkFile) -> tuple[Any, ...]:
    arrays = (chunk.documents(), chunk.ids(), chunk.loss_mask(), chunk.bands())
    return chunk.header, *(array.tobytes() for array in arrays), list(chunk.rejected())


def test_an_absent_unit_is_none(tmp_path: Path) -> None:
    assert ChunkFile.open(tmp_path / "chunk") is None
    (tmp_path / "chunk").mkdir()
    assert ChunkFile.open(tmp_path / "chunk") is None


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    whole = everything(written(tmp_path, result(lengths=(2, 3), num_signed=1, rejected=REJECTED[:1])))
    path = tmp_path / "chunk"
    data = path.read_bytes()
    unnoticed = []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        if (chunk := ChunkFile.open(path)) is not None:
            unnoticed.append(place)
            assert everything(chunk) == whole
    # The hash covers all but itself and the newline behind it, which says nothing.
    assert set(unnoticed) <= {HASH_CHARACTERS}


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "one byte": lambda data: data[:1],
    "in the hash": lambda data: data[:40],
    "behind the hash": lambda data: data[:HASH_CHARACTERS],
    "behind the hash's line": lambda data: data[: HASH_CHARACTERS + 1],
    "in the header": lambda data: data[: HASH_CHARACTERS + 20],
    "in the arrays": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "a byte too many": lambda data: data + b"\n",
    "zeros at the end": lambda data: data[:-100] + bytes(100),
    "all zeros": lambda data: bytes(len(data)),
    "another chunk's content": lambda data: data[:HASH_CHARACTERS] + b"\n{}\n",
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_cut_or_garbled_unit_is_none(cut: Callable[[bytes], bytes], tmp_path: Path) -> None:
    written(tmp_path, result(rejected=REJECTED))
    path = tmp_path / "chunk"
    path.write_bytes(cut(path.read_bytes()))
    assert ChunkFile.open(path) is None


# ------------------------------------------------------------------------------------------------ disks that refuse


def test_a_folder_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written") as caught:
        write_chunk(tmp_path / "gone" / "chunk", result())
    assert "check space and permissions" in str(caught.value)


class FullDisk:
    """A file that takes a few bytes and no more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, data: bytes) -> int:
        return int(self._stream.write(data))

    def writelines(self, _: Any) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", [None, "whole"], ids=["nothing before", "a whole chunk before"])
def test_a_full_disk_leaves_nothing_under_the_final_name(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chunk"
    if before:
        write_chunk(path, result(lengths=(4,)))
    old = path.read_bytes() if before else None
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: FullDisk(original(self, *mode)))
    with pytest.raises(StorageError, match="No space left on device"):
        write_chunk(path, result(rejected=REJECTED))
    monkeypatch.undo()
    assert (path.read_bytes() if path.exists() else None) == old


def test_a_rename_that_is_refused_leaves_nothing_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        write_chunk(tmp_path / "chunk", result())
    assert not (tmp_path / "chunk").exists()


def test_two_writers_of_one_unit_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that outlives its build may still write what the next build makes as well."""
    original = Path.replace

    def write_again_first(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", original)
        monkeypatch.setattr("os.getpid", lambda: 1)
        write_chunk(target, result(rejected=REJECTED))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", write_again_first)
    chunk = written(tmp_path, result(rejected=REJECTED))
    assert list(chunk.rejected()) == list(REJECTED)
    assert [path.name for path in tmp_path.iterdir()] == ["chunk"]
