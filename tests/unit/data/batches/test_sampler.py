"""The order of a run is a pure function of (seed, epoch, position), for ever."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.config.model import InitConfig
from sft.config.train import TrainConfig
from sft.data.batches.sampler import Order

# Frozen: a change here would reorder every run that is resumed with a newer version.
GOLDEN = {
    (10, 0): ["4801762539", "9701634528", "0328649715"],
    (10, 1): ["3524190687", "6129504387", "1379286450"],
    (7, 2**64 - 1): ["5462310", "5120463", "5120643"],
    (1, 5): ["0", "0", "0"],
}
GOLDEN_MILLION = [726160, 954427, 822579, 691185, 485620, 978768, 651142, 625509]
ORDERS = st.builds(
    Order,
    num_packs=st.integers(1, 40),
    batch_packs=st.integers(1, 50),
    epochs=st.floats(0.1, 4),
    seed=st.integers(0, 2**32),
    max_steps=st.none() | st.integers(1, 30),
)


def stream(order: Order) -> list[int]:
    return [index for step in range(order.num_steps) for index in order.batch(step)]


def epoch(num_packs: int, seed: int, number: int) -> list[int]:
    order = Order(num_packs, num_packs, number + 1, seed)
    return order.batch(number)


@given(order=ORDERS)
def test_every_pack_is_used_once_per_epoch(order: Order) -> None:
    found = stream(order)
    assert len(found) == order.num_samples
    for start in range(0, len(found), order.num_packs):
        part = found[start : start + order.num_packs]
        assert max(Counter(part).values()) == 1
        assert set(part) <= set(range(order.num_packs))
        if len(part) == order.num_packs:
            assert set(part) == set(range(order.num_packs))


@given(order=ORDERS)
def test_only_the_last_batch_may_be_shorter(order: Order) -> None:
    sizes = [len(order.batch(step)) for step in range(order.num_steps)]
    assert all(size == order.batch_packs for size in sizes[:-1])
    assert not sizes or 1 <= sizes[-1] <= order.batch_packs
    assert order.batch(order.num_steps) == []


@given(order=ORDERS, other=st.integers(1, 50))
def test_the_stream_does_not_depend_on_the_batch_size(order: Order, other: int) -> None:
    changed = Order(order.num_packs, other, order.epochs, order.seed)
    unlimited = Order(order.num_packs, order.batch_packs, order.epochs, order.seed)
    assert stream(changed) == stream(unlimited)
    assert stream(order) == stream(unlimited)[: order.num_samples]


@given(order=ORDERS)
def test_a_step_is_found_without_the_steps_before_it(order: Order) -> None:
    fresh = Order(order.num_packs, order.batch_packs, order.epochs, order.seed, order.max_steps)
    last_to_first = [fresh.batch(step) for step in reversed(range(order.num_steps))]
    assert last_to_first[::-1] == [order.batch(step) for step in range(order.num_steps)]


@pytest.mark.parametrize(
    ("num_packs", "batch_packs", "epochs", "max_steps", "num_samples", "num_steps"),
    [
        (100, 10, 1.0, None, 100, 10),
        (100, 30, 1.0, None, 100, 4),
        (100, 30, 0.5, None, 50, 2),
        (100, 30, 2.5, None, 250, 9),
        (100, 256, 1.0, None, 100, 1),
        (100, 10, 1.0, 3, 30, 3),
        (100, 30, 1.0, 4, 100, 4),
        (100, 30, 1.0, 999, 100, 4),
        (3, 256, 3.0, None, 9, 1),
        (0, 4, 3.0, None, 0, 0),
    ],
)
def test_epochs_and_max_steps_say_how_long_a_run_is(
    num_packs: int, batch_packs: int, epochs: float, max_steps: int | None, num_samples: int, num_steps: int
) -> None:
    order = Order(num_packs, batch_packs, epochs, 0, max_steps)
    assert (order.num_samples, order.num_steps) == (num_samples, num_steps)
    assert len(stream(order)) == num_samples


@pytest.mark.parametrize(("num_packs", "seed"), GOLDEN)
def test_the_order_of_a_seed_never_changes(num_packs: int, seed: int) -> None:
    found = ["".join(map(str, epoch(num_packs, seed, number))) for number in range(3)]
    assert found == GOLDEN[num_packs, seed]


def test_the_order_of_a_long_epoch_never_changes() -> None:
    order = Order(1_000_000, 8, 4.0, 1234)
    assert order.batch(3 * 1_000_000 // 8) == GOLDEN_MILLION


def mixed(value: int) -> int:
    """SplitMix64 with whole numbers, as its authors print it."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(num_packs=st.integers(1, 60), seed=st.integers(0, 2**64 - 1), number=st.integers(0, 5))
def test_the_order_is_that_of_a_published_hash(num_packs: int, seed: int, number: int) -> None:
    start = mixed((mixed(seed) + number) % 2**64)
    assert epoch(num_packs, seed, number) == sorted(range(num_packs), key=lambda index: mixed((start + index) % 2**64))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {(seed, number): tuple(epoch(50, seed, number)) for seed in range(6) for number in range(6)}
    assert len(set(orders.values())) == len(orders)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_an_order_is_as_good_as_random(seed: int) -> None:
    """Places of the packs in one epoch and in the next, or under the next seed, say nothing about each other."""
    first = np.argsort(epoch(10_000, seed, 0))
    for other in (epoch(10_000, seed, 1), epoch(10_000, (seed + 1) % 2**64, 0), range(10_000)):
        assert abs(np.corrcoef(first, np.argsort(other))[0, 1]) < 0.05


def test_the_settings_of_a_run_name_its_order() -> None:
    config = TrainConfig("shards", InitConfig("scratch"), "out", batch_packs=5, epochs=2.5, seed=7, max_steps=3)
    assert Order.of(config, range(11)) == Order(num_packs=11, batch_packs=5, epochs=2.5, seed=7, max_steps=3)
