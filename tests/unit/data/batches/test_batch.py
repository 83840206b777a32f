"""A batch holds every document, and each position's target is the token that follows it, where it carries loss."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.batches.batch import IGNORE, join, micro_batches
from sft.data.shards import Pack, Shards

SEQ_LEN = 24


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    """Also with a mask on first tokens and on padding, which must not become targets."""
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    ids = draw(st.lists(st.integers(0, 65535), min_size=SEQ_LEN, max_size=SEQ_LEN))
    mask = draw(st.lists(st.integers(0, 1), min_size=SEQ_LEN, max_size=SEQ_LEN))
    doc_ids = draw(st.lists(st.integers(0, 99), min_size=len(lengths), max_size=len(lengths)))
    return Pack(
        np.array(ids, np.uint16),
        np.array(mask, np.uint8),
        np.array(lengths, np.uint16),
        np.array(doc_ids, np.uint32),
        sum(mask),
    )


def slowly(members: list[Pack]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Ids, targets, lengths and document ids, one document and one position at a time."""
    ids: list[int] = []
    targets: list[int] = []
    lengths, doc_ids = [], []
    for pack in members:
        for doc_id, place in pack.documents():
            document, mask = pack.input_ids_T[place].tolist(), pack.loss_mask_T[place].tolist()
            ids += document
            targets += [
                document[t + 1] if t + 1 < len(document) and mask[t + 1] else IGNORE for t in range(len(document))
            ]
            lengths.append(len(document))
            doc_ids.append(doc_id)
    return ids, targets, lengths, doc_ids


@given(members=st.lists(packs(), min_size=1, max_size=4))
def test_targets_are_the_next_tokens_of_the_same_document(members: list[Pack]) -> None:
    batch = join(members)
    ids, targets, lengths, doc_ids = slowly(members)
    assert batch.input_ids_T.tolist() == ids
    assert batch.targets_T.tolist() == targets
    assert (batch.doc_lengths, batch.doc_ids) == (tuple(lengths), tuple(doc_ids))
    assert batch.num_supervised == sum(target != IGNORE for target in targets)
    assert (batch.input_ids_T.dtype, batch.targets_T.dtype) == (np.int64, np.int64)


@given(members=st.lists(packs(), min_size=1, max_size=4))
def test_a_document_s_first_token_is_never_a_target(members: list[Pack]) -> None:
    batch = join(members)
    ends = np.cumsum(batch.doc_lengths)
    assert (batch.targets_T[ends - 1] == IGNORE).all()


def test_token_0_is_a_target_like_any_other() -> None:
    """The end token has id 0."""
    pack = Pack(np.array([5, 0], np.uint16), np.array([0, 1], np.uint8), np.array([2], np.uint16), np.array([1]), 1)
    batch = join([pack])
    assert batch.targets_T.tolist() == [0, IGNORE]
    assert batch.num_supervised == 1


def test_joining_changes_no_pack() -> None:
    mask = np.ones(4, np.uint8)
    pack = Pack(np.arange(4, dtype=np.uint16), mask, np.array([2, 2], np.uint16), np.array([0, 1]), 4)
    join([pack])
    assert mask.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("count", "size", "sizes"), [(6, 2, [2, 2, 2]), (5, 2, [2, 2, 1]), (3, 8, [3]), (0, 2, [])])
def test_a_step_is_dealt_out_in_order(count: int, size: int, sizes: list[int], tiny_shards: Path) -> None:
    split = Shards.open(tiny_shards).split("train")
    indices = [20, 3, 11, 0, 7, 5][:count]
    batches = list(micro_batches(split, indices, size))
    assert [len(batch.doc_ids) // 3 for batch in batches] == sizes
    wanted = [int(doc_id) for index in indices for doc_id in split[index].doc_ids_N]
    assert [doc_id for batch in batches for doc_id in batch.doc_ids] == wanted


def test_targets_of_a_build_are_as_many_as_its_packs_say(tiny_shards: Path) -> None:
    split = Shards.open(tiny_shards).split("train")
    batch = join([split[index] for index in range(len(split))])
    assert batch.num_supervised == int(split.num_supervised_P.sum()) > 0
