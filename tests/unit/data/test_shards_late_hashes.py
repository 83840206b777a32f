"""A build opened without hashing its large files has each of them hashed before it is first read from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.data.build.build import build
from sft.data.documents import DOCUMENTS
from sft.data.shards import QUARANTINE, TOKENIZER, Shards, Split
from sft.errors import DataError
from sft.storage import manifest


@pytest.fixture
def folder(write_mixture: Callable[..., Any]) -> Path:
    """A build with one pack per file."""
    raw = write_mixture(talks=[["no answer"], *([f"question {n}", f"answer {n}"] for n in range(20))])
    return build(raw.config("packs_per_shard=1"), raw.recipes).folder


def train_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("train-*.arrow"))


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [DOCUMENTS, TOKENIZER])
def test_only_the_files_of_packs_are_hashed_late(name: str, folder: Path) -> None:
    flip_a_bit(folder / name, 10)
    with pytest.raises(DataError, match=f"{name}: changed"):
        Shards.open(folder, check_hashes=False)


def test_the_rows_that_were_not_kept_are_hashed_when_somebody_reads_them(folder: Path) -> None:
    flip_a_bit(folder / QUARANTINE, 10)
    shards = Shards.open(folder)
    with pytest.raises(DataError, match=f"{QUARANTINE}: changed"):
        list(shards.quarantine())


def test_damage_to_the_layout_of_a_file_is_refused_by_name(folder: Path) -> None:
    path = folder / train_files(folder)[1]
    content, shards = path.read_bytes(), Shards.open(folder, check_hashes=False)
    for place in range(0, len(content), 7):
        path.unlink()  # the file before is still mapped
        path.write_bytes(content)
        flip_a_bit(path, place)
        with pytest.raises(DataError, match=path.name):
            shards.split("train")[1]


READS: dict[str, Callable[[Split], object]] = {
    "a pack": lambda split: split[1],
    "all documents": lambda split: split.placed,
    "all counts": lambda split: split.num_supervised_P,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_changed_file_is_never_read_from(read: Callable[[Split], object], folder: Path) -> None:
    name, ids_T = train_files(folder)[1], Shards.open(folder).split("train")[1].input_ids_T
    flip_a_bit(folder / name, (folder / name).read_bytes().index(ids_T.tobytes()))
    split = Shards.open(folder, check_hashes=False).split("train")
    assert split[0].num_tokens > 0  # of another file
    for _ in range(2):
        with pytest.raises(DataError, match=f"{name}: changed"):
            read(split)


def test_each_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards.open(folder, check_hashes=False)
    hashed: list[str] = []

    def observed(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    file_sha256 = manifest.file_sha256
    monkeypatch.setattr(manifest, "file_sha256", observed)
    for split in (shards.split("train"), shards.split("train")):
        assert split[0].num_tokens > 0
    assert hashed == train_files(folder)[:1]
    assert len(shards.split("train").placed[2]) == len(train_files(folder))
    assert sorted(hashed) == train_files(folder)
