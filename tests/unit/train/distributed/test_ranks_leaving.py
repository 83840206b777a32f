import threading

import pytest

from sft.errors import PeerError
from sft.train.distributed.ranks import ended_after

LOST = PeerError("found nobody", on="node1:29500")


def test_block_that_takes_too_long_ends_the_process_with_its_error(capfd: pytest.CaptureFixture[str]) -> None:
    codes, has_left = list[int](), threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        has_left.set()

    with ended_after(0.01, LOST, leave):
        assert has_left.wait(30)
    assert codes == [71]
    assert capfd.readouterr().err == "sft: node1:29500: found nobody\n"


def test_block_that_ends_in_time_ends_nothing() -> None:
    codes: list[int] = []
    before = threading.active_count()
    with ended_after(60.0, LOST, codes.append):
        assert threading.active_count() == before + 1
    while threading.active_count() > before:
        threading.Event().wait(0.01)
    assert codes == []
