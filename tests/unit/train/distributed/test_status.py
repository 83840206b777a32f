import dataclasses

import numpy as np
import pytest

from sft.errors import PeerError
from sft.train.distributed.ranks import SINGLE
from sft.train.distributed.status import RankStatus, require_same_step

STATUS = RankStatus(
    step=7, is_asked_to_stop=True, is_save_written=False, loading_s=0.25, probe_s=0.001, packs=(12, 0, 3)
)


@pytest.mark.parametrize("packs", [(), (0,), (12, 0, 3)])
def test_what_is_packed_comes_out_again_whatever_others_have_computed(packs: tuple[int, ...]) -> None:
    status = dataclasses.replace(STATUS, packs=packs)
    numbers = status.pack(most_packs=5)
    assert len(numbers) == len(STATUS.pack(most_packs=5))
    assert RankStatus.unpack(np.array(numbers)) == status


def test_one_process_exchanges_with_itself() -> None:
    assert STATUS.exchange(SINGLE, batch_packs=4) == [STATUS]


def test_processes_at_different_steps_are_told_with_their_steps() -> None:
    require_same_step([STATUS, dataclasses.replace(STATUS, packs=())])
    with pytest.raises(PeerError, match=r"different steps: \[7, 8\]"):
        require_same_step([STATUS, dataclasses.replace(STATUS, step=8)])
