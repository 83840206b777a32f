"""Packs of a test, one by one, as the arrays of a shard."""

from collections.abc import Sequence

import numpy as np

from sft.data.shards import Pack, Packs


def laid(packs: Sequence[Pack]) -> Packs:
    """The packs one below the other, their documents one behind the other."""
    return Packs(
        np.stack([pack.input_ids_T for pack in packs]),
        np.stack([pack.loss_mask_T for pack in packs]),
        np.concatenate([pack.doc_lengths_N for pack in packs]),
        np.concatenate([pack.doc_ids_N for pack in packs]),
        np.cumsum([0, *(len(pack.doc_lengths_N) for pack in packs)]),
        np.array([pack.num_supervised for pack in packs], np.uint32),
    )
