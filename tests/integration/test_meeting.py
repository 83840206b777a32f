"""Ranks that do not find each other give up in time, and name the place where they looked."""

import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from sft.train.distributed.ranks import connected
from sft.train.distributed.world import World
from tests.support.process import Start

LIMIT_S = 1.0


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port at which something else listens that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def meet(port: int, rank: int, size: int, _: World, __: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with connected(World(rank, size, rank), torch.device("cpu"), timeout_s=LIMIT_S) as ranks:
        ranks.gather([])


@pytest.mark.parametrize(
    "places",
    [[(0, 2)], [(1, 2)], [(0, 2), (1, 3)], [(0, 3), (1, 2)]],
    ids=["others never come", "first one never comes", "first one expects fewer", "first one expects more"],
)
def test_ranks_that_do_not_all_meet_leave_with_71_and_name_the_place(
    places: list[tuple[int, int]], start: Start, free_port: int
) -> None:
    for rank in start(*(partial(meet, free_port, *place) for place in places)):
        assert rank.exit_code() == 71
        assert f"sft: 127.0.0.1:{free_port}: process" in rank.stderr


@pytest.mark.parametrize("rank", [0, 1], ids=["opens the port", "connects to it"])
def test_port_that_something_else_uses_ends_with_71_and_is_named(rank: int, start: Start, taken_port: int) -> None:
    (process,) = start(partial(meet, taken_port, rank, 2))
    assert process.exit_code() == 71
    assert f"sft: 127.0.0.1:{taken_port}: process {rank} of 2 did not find all others there" in process.stderr
