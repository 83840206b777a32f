"""Documents come back from the spool as they went in, in order."""

from pathlib import Path

import numpy as np
import pytest

from sft.data.spool import Spool
from sft.data.worker import DOCUMENT_FIELDS, ChunkResult


def chunk(source: str, file: str, *lengths: int) -> ChunkResult:
    total = sum(lengths)
    ids = np.arange(total, dtype=np.uint16) + 1000 * len(source)
    documents = np.array([(n, 0, 7, length, 1) for n, length in enumerate(lengths)], DOCUMENT_FIELDS)
    return ChunkResult(source, file, len(lengths), 0, [], ids, (ids % 2).astype(np.uint8), documents, 0)


@pytest.fixture
def chunks() -> list[ChunkResult]:
    return [chunk("a", "a.json", 3, 1), chunk("a", "b.json"), chunk("bb", "b.json", 5)]


def test_every_document_is_found_at_its_offset(chunks: list[ChunkResult], tmp_path: Path) -> None:
    with Spool(tmp_path, np.uint16, ["a", "bb"], ["a.json", "b.json"]) as spool:
        for item in chunks:
            spool.add(item)
        spooled = spool.read()
        assert spooled.offsets.tolist() == [0, 3, 4, 9]
        assert spooled.source.tolist() == [0, 0, 1]
        assert spooled.file.tolist() == [0, 0, 1]
        assert spooled.records["row"].tolist() == [0, 1, 0]
        assert spooled.ids.tolist() == [1000, 1001, 1002, 1003, 2000, 2001, 2002, 2003, 2004]
        assert spooled.loss_mask.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
        assert spooled.ids.dtype == np.uint16


def test_an_empty_spool_reads_as_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path, np.uint32, ["a"], ["a.json"]) as spool:
        spooled = spool.read()
    assert (spooled.offsets.tolist(), len(spooled.records), len(spooled.ids)) == ([0], 0, 0)


def test_nothing_of_the_spool_is_published(chunks: list[ChunkResult], tmp_path: Path) -> None:
    with Spool(tmp_path, np.uint16, ["a", "bb"], ["a.json", "b.json"]) as spool:
        spool.add(chunks[0])
        spooled = spool.read()
        assert len(list(tmp_path.iterdir())) == 2
        spooled.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_was_not_announced_is_an_error(tmp_path: Path) -> None:
    with Spool(tmp_path, np.uint16, ["a"], ["a.json"]) as spool, pytest.raises(ValueError, match="bb"):
        spool.add(chunk("bb", "a.json", 3))
