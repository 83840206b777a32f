"""Shards give back every pack as it was written, and refuse to open when anything changed."""

import dataclasses
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.data import shards
from sft.data.documents import DOCUMENTS, DocumentTable, TurnStarts, write_documents
from sft.data.manifest import SplitFacts
from sft.data.shards import KIND, QUARANTINE, SCHEMA_VERSION, Pack, Shards, Split, shard_name, token_type, write_shard
from sft.errors import ConfigError, DataError
from sft.storage.manifest import write_manifest
from tests.support.manifests import build_manifest, split_facts
from tests.support.packs import laid

SEQ_LEN = 32
PACKS_PER_SHARD = (7, 5, 1)


def random_packs(count: int, kind: Any = np.uint16, seq_len: int = SEQ_LEN) -> list[Pack]:
    rng = np.random.default_rng(count)
    found = []
    for number in range(count):
        lengths = rng.integers(1, seq_len // 4, number % 4 + 1)
        mask = (rng.random(seq_len) < 0.3).astype(np.uint8)
        ids = rng.integers(0, np.iinfo(kind).max, seq_len).astype(kind)
        doc_ids = rng.integers(0, 2**32, len(lengths), dtype=np.uint32)
        found.append(Pack(ids, mask, lengths.astype(np.uint16), doc_ids, int(mask.sum())))
    return found


def equal(one: Pack, other: Pack) -> bool:
    columns = ("input_ids_T", "loss_mask_T", "doc_lengths_N", "doc_ids_N")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
    return same and one.num_supervised == other.num_supervised


def write_split(folder: Path, packs: list[Pack]) -> SplitFacts:
    """Shards of 7, 5 and 1 packs; what the manifest says of them."""
    folder.mkdir(exist_ok=True)
    left, found = list(packs), []
    for number, count in enumerate(PACKS_PER_SHARD):
        name = shard_name("train", number, len(PACKS_PER_SHARD))
        write_shard(folder / name, laid(left[:count]))
        found += split_facts(name, left[:count]).shards
        left = left[count:]
    return dataclasses.replace(split_facts("", packs), shards=tuple(found))


@pytest.fixture
def packs() -> list[Pack]:
    return random_packs(sum(PACKS_PER_SHARD))


@pytest.fixture
def folder(tmp_path: Path, packs: list[Pack], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published folder of three shards with up to three record batches each."""
    monkeypatch.setattr(shards, "PACKS_PER_RECORD_BATCH", 3)
    place = tmp_path / "shards"
    facts = write_split(place, packs)
    write_documents(place / DOCUMENTS, documents(20))
    (place / QUARANTINE).write_text('{"source": "a", "row": 3}\n{"source": "b", "row": 4}\n')
    manifest = build_manifest(seq_len=SEQ_LEN, splits={"train": facts})
    write_manifest(place, KIND, SCHEMA_VERSION, manifest.to_json())
    return place


def documents(count: int) -> DocumentTable:
    rng = np.random.default_rng(1)
    return DocumentTable(
        ("alpha", "beta", "unused"),
        ("alpha.jsonl", "deep/beta ü.json"),
        source=rng.integers(0, 2, count),
        file=rng.integers(0, 2, count),
        row=rng.integers(0, 2**32, count),
        piece=rng.integers(0, 2**16, count),
        first_turn=rng.integers(0, 2**16, count),
        digest=rng.integers(0, 2**64, count, dtype=np.uint64),
        group=rng.integers(0, 2**64, count, dtype=np.uint64),
        content=rng.integers(0, 2**64, count, dtype=np.uint64),
        num_tokens=rng.integers(0, 2**32, count),
        num_supervised=rng.integers(0, 2**32, count),
        truncated=rng.random(count) < 0.5,
        uses=rng.integers(1, 2**16, count),
        held_out=rng.random(count) < 0.5,
        turn_starts=TurnStarts(rng.integers(0, 2**16, 3 * count), 3 * np.arange(count + 1)),
    )


# ------------------------------------------------------------------------------------------------ round trip


def test_every_pack_reads_back_in_any_order(folder: Path, packs: list[Pack]) -> None:
    split = Shards.open(folder).split("train")
    assert len(split) == len(packs) == 13
    indices = list(range(len(packs))) * 2
    random.Random(0).shuffle(indices)
    assert all(equal(split[index], packs[index]) for index in indices)
    assert split.num_supervised_P.tolist() == [pack.num_supervised for pack in packs]


def test_the_documents_of_all_packs_are_told_at_once(folder: Path, packs: list[Pack]) -> None:
    ids, lengths, counts = Shards.open(folder).split("train").placed
    assert ids.tolist() == [doc_id for pack in packs for doc_id in pack.doc_ids_N.tolist()]
    assert lengths.tolist() == [length for pack in packs for length in pack.doc_lengths_N.tolist()]
    assert counts.tolist() == [len(pack.doc_ids_N) for pack in packs]


@pytest.mark.parametrize("index", [-1, 13, 10**9])
def test_a_pack_that_is_not_there_is_an_index_error(index: int, folder: Path) -> None:
    with pytest.raises(IndexError, match=f"pack {index} of 13"):
        Shards.open(folder).split("train")[index]


def test_iterating_ends_after_the_last_pack(folder: Path, packs: list[Pack]) -> None:
    assert len(list(iter(Shards.open(folder).split("train")))) == len(packs)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_token_ids_keep_their_type_and_value(kind: Any, tmp_path: Path) -> None:
    (pack,) = random_packs(1, kind)
    write_shard(tmp_path / "one.arrow", laid([pack]))
    split = Split(tmp_path, "train", split_facts("one.arrow", [pack]))
    assert equal(split[0], pack)
    assert split[0].input_ids_T.dtype == kind


@pytest.mark.parametrize(("num_ids", "kind"), [(2, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_token_ids_take_the_smallest_type_that_holds_all(num_ids: int, kind: Any) -> None:
    assert token_type(num_ids) is kind
    assert np.iinfo(token_type(num_ids)).max >= num_ids - 1


@pytest.mark.parametrize(("column", "value"), [("doc_lengths", 2**16), ("doc_ids", 2**32), ("doc_ids", -1)])
def test_a_number_that_its_column_cannot_hold_is_never_written(column: str, value: int, tmp_path: Path) -> None:
    packs = laid(random_packs(2))
    wide = getattr(packs, column).astype(np.int64)
    wide[0] = value
    with pytest.raises(ValueError, match=str(value)):
        write_shard(tmp_path / "one.arrow", dataclasses.replace(packs, **{column: wide}))


def test_a_pack_knows_its_documents() -> None:
    pack = Pack(np.zeros(10), np.zeros(10), np.array([3, 1, 4], np.uint16), np.array([7, 5, 9], np.uint32), 0)
    assert pack.num_tokens == 8
    assert list(pack.documents()) == [(7, slice(0, 3)), (5, slice(3, 4)), (9, slice(4, 8))]


@pytest.mark.parametrize("count", [1, 20])
def test_the_document_table_reads_back_equal(count: int, tmp_path: Path) -> None:
    table = documents(count)
    write_documents(tmp_path / DOCUMENTS, table)
    found = Shards(tmp_path, build_manifest()).documents
    assert len(found) == count
    assert (found.sources, found.files) == (table.sources, table.files)
    columns = [field.name for field in dataclasses.fields(DocumentTable) if field.name not in ("sources", "files")]
    assert len(columns) == 14
    for name in ("starts", "ends"):
        assert getattr(found.turn_starts, name).tolist() == getattr(table.turn_starts, name).tolist()
    for name in set(columns) - {"turn_starts"}:
        assert getattr(found, name).tolist() == getattr(table, name).tolist(), name


def test_rows_that_were_not_kept_are_listed(folder: Path) -> None:
    assert list(Shards.open(folder).quarantine()) == [{"source": "a", "row": 3}, {"source": "b", "row": 4}]


def test_writing_twice_gives_equal_bytes(folder: Path, packs: list[Pack], tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_split(again, packs)
    write_documents(again / DOCUMENTS, documents(20))
    names = sorted(path.name for path in again.iterdir())
    assert len(names) == 4
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_the_datasets_library_reads_a_shard(folder: Path, packs: list[Pack], tmp_path: Path) -> None:
    import datasets

    files = [str(folder / shard_name("train", number, 3)) for number in range(3)]
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["input_ids", "loss_mask", "doc_lengths", "doc_ids", "num_supervised"]
    assert len(rows) == len(packs)
    for row, pack in zip(rows, packs, strict=True):
        assert row["input_ids"] == pack.input_ids_T.tolist()
        assert row["loss_mask"] == pack.loss_mask_T.tolist()
        assert row["doc_lengths"] == pack.doc_lengths_N.tolist()
        assert row["doc_ids"] == pack.doc_ids_N.tolist()
        assert row["num_supervised"] == pack.num_supervised


def test_packs_are_read_from_the_file_without_a_copy(folder: Path) -> None:
    pack = Shards.open(folder).split("train")[8]
    assert not pack.input_ids_T.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        pack.input_ids_T[0] = 1


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("name", ["train-00001-of-00003.arrow", DOCUMENTS])
def test_a_flipped_bit_anywhere_is_refused(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    for part in range(50):
        flipped = bytearray(content)
        flipped[(len(content) - 1) * part // 49] ^= 1 << part % 8
        (folder / name).write_bytes(flipped)
        with pytest.raises(DataError, match=f"{name}: changed"):
            Shards.open(folder)
    (folder / name).write_bytes(content)
    Shards.open(folder)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("check_hashes", [True, False])
def test_a_cut_or_missing_file_is_refused_even_without_hashing(
    change: Callable[[Path], object], check_hashes: bool, folder: Path
) -> None:
    change(folder / "train-00002-of-00003.arrow")
    with pytest.raises(DataError, match=r"train-00002-of-00003\.arrow") as caught:
        Shards.open(folder, check_hashes=check_hashes)
    assert str(folder) in str(caught.value)
    assert "build again" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no arrow file", b"ARROW1\0\0" + b"\0" * 64 + b"ARROW1"])
def test_a_file_that_is_no_arrow_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.arrow").write_bytes(content)
    with pytest.raises(DataError, match="not readable as an Arrow file") as caught:
        Split(tmp_path, "train", split_facts("one.arrow", []))
    assert "one.arrow" in str(caught.value)


def test_other_packs_than_the_manifest_says_are_refused(folder: Path) -> None:
    facts = Shards.open(folder).manifest.splits["train"]
    with pytest.raises(DataError, match="holds 13 packs, the manifest says 14"):
        Split(folder, "train", dataclasses.replace(facts, packs=14))


def test_an_unknown_split_is_named_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'test'; it has train"):
        Shards.open(folder).split("test")


def test_a_split_without_packs_is_empty(tmp_path: Path) -> None:
    split = Split(tmp_path, "valid", dataclasses.replace(split_facts("none", []), shards=()))
    assert len(split) == 0
    assert split.num_supervised_P.tolist() == []
    assert [column.tolist() for column in split.placed] == [[], [], []]


def test_a_copied_folder_opens_like_the_first(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert Shards.open(tmp_path / "copy").manifest == Shards.open(folder).manifest
