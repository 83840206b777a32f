"""Weight, number and epochs choose what is learnt, and never touch what is held out."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sft.chat.conversation import Conversation, Message
from sft.data.build.build import build
from sft.data.build.split import held_out, is_sampled, repeats
from sft.data.digests import group_digest
from sft.data.inspect.verify import verify
from sft.data.shards import Shards
from sft.errors import DataError

NUM_ROWS = 300
SHARE = 0.1
Row = tuple[str, int]


def talks(name: str, count: int = NUM_ROWS) -> list[list[str]]:
    """Conversations of one or two exchanges, no two of which open alike."""
    return [[f"{name} {n}?", f"{n}", *(["more?", f"{n} more"] if n % 5 == 0 else [])] for n in range(count)]


@pytest.fixture
def raw(write_mixture: Callable[..., Any]) -> Any:
    """Two sources of 300 conversations each."""
    return write_mixture(alpha=talks("alpha"), beta=talks("beta"))


def built(raw: Any, *arguments: str, valid: str = f"valid_share={SHARE}") -> Shards:
    """A proven build in a folder of its own."""
    number = len(list(raw.mixture.parent.glob("shards-*")))
    shards = build(raw.config(valid, f"out={raw.mixture.parent}/shards-{number}", *arguments), raw.recipes)
    verify(shards.folder)
    return shards


def packed(shards: Shards, split: str) -> Counter[Row]:
    """How often each row is in the packs of a split, counted in the packs themselves."""
    table, packs = shards.documents, shards.split(split)
    return Counter(
        (table.sources[table.source[number]], int(table.row[number]))
        for index in range(len(packs))
        for number in packs[index].doc_ids_N.tolist()
    )


def of(name: str, rows: Counter[Row]) -> set[int]:
    return {row for source, row in rows if source == name}


# ------------------------------------------------------------------------------------------------ what is learnt


@pytest.mark.parametrize("weight", [0.9, 0.5, 0.2])
def test_a_weight_takes_about_this_share_and_all_of_what_a_smaller_one_takes(weight: float, raw: Any) -> None:
    shards, smaller = (built(raw, f"sources.alpha.weight={share}") for share in (weight, weight / 1.5))
    taken, fewer = (packed(item, "train") + packed(item, "valid") for item in (shards, smaller))
    assert abs(len(of("alpha", taken)) - weight * NUM_ROWS) < 3 * (weight * NUM_ROWS) ** 0.5
    assert of("alpha", fewer) < of("alpha", taken)
    assert set(taken.values()) == {1}
    facts = shards.manifest.sources["alpha"]
    assert (facts.rows_kept, facts.rows_skipped) == (len(of("alpha", taken)), NUM_ROWS - len(of("alpha", taken)))
    assert len(of("beta", taken)) == NUM_ROWS


@pytest.mark.parametrize("count", [1, 17, 150])
def test_a_number_of_conversations_is_exact(count: int, raw: Any) -> None:
    shards = built(raw, f"sources.alpha.num_conversations={count}")
    train = packed(shards, "train")
    assert len(of("alpha", train)) == count
    assert set(train.values()) == {1}
    everything = packed(built(raw), "train")
    assert of("alpha", train) <= of("alpha", everything)
    assert of("beta", train) == of("beta", everything)
    facts = shards.manifest.sources["alpha"]
    assert facts.rows_skipped == len(of("alpha", everything)) - count
    assert facts.rows_read == facts.rows_kept + facts.rows_skipped == NUM_ROWS


def test_a_number_that_is_not_there_is_refused(raw: Any) -> None:
    with pytest.raises(DataError, match=r"alpha: num_conversations=5000, but \d+ are left to train on"):
        built(raw, "sources.alpha.num_conversations=5000")


def test_a_larger_number_adds_to_a_smaller_one(raw: Any) -> None:
    few, more = (of("alpha", packed(built(raw, f"sources.alpha.num_conversations={n}"), "train")) for n in (40, 80))
    assert few < more


def test_a_number_counts_conversations_not_their_pieces(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=[[f"turn {n}.{turn} " + "and on " * 5 for turn in range(8)] for n in range(30)])
    train = packed(built(raw, "sources.alpha.num_conversations=7"), "train")
    assert len(train) == 7
    assert min(train.values()) > 1


@pytest.mark.parametrize(("epochs", "times"), [(1, {1}), (3, {3}), (2.5, {2, 3}), (1.25, {1, 2})])
def test_epochs_pack_each_conversation_so_often(epochs: float, times: set[int], raw: Any) -> None:
    shards = built(raw, f"sources.alpha.epochs={epochs}")
    train = packed(shards, "train")
    mine = {row: count for row, count in train.items() if row[0] == "alpha"}
    assert set(mine.values()) == times
    assert of("alpha", train) == of("alpha", packed(built(raw), "train"))
    once_more = sum(count > epochs for count in mine.values())
    assert abs(once_more - (epochs % 1) * len(mine)) < 3 * len(mine) ** 0.5 / 2
    assert {count for row, count in train.items() if row[0] == "beta"} == {1}
    assert set(packed(shards, "valid").values()) == {1}
    assert shards.manifest.splits["train"].documents == train.total()


def test_equal_builds_repeat_the_same_conversations(raw: Any) -> None:
    one, two = (built(raw, "sources.alpha.epochs=2.5", "sources.alpha.weight=0.8") for _ in range(2))
    assert packed(one, "train") == packed(two, "train")
    assert one.manifest.files == two.manifest.files


def test_number_and_epochs_together_repeat_the_chosen_ones(raw: Any) -> None:
    train = packed(built(raw, "sources.alpha.num_conversations=50", "sources.alpha.epochs=2.5"), "train")
    assert len(of("alpha", train)) == 50
    assert {train["alpha", row] for row in of("alpha", train)} == {2, 3}


def test_a_weight_does_not_choose_those_that_are_repeated_once_more(raw: Any) -> None:
    """Were both chosen by one order, half of the conversations would all be learnt twice at weight 0.5."""
    train = packed(built(raw, "sources.alpha.weight=0.5", "sources.alpha.epochs=1.5"), "train")
    twice = sum(train["alpha", row] == 2 for row in of("alpha", train))
    assert 0.3 < twice / len(of("alpha", train)) < 0.7


# ------------------------------------------------------------------------------------------------ what is held out

MIXING = {
    "half": ["sources.alpha.weight=0.5", "sources.beta.weight=0.7"],
    "few": ["sources.alpha.num_conversations=3", "sources.beta.num_conversations=100"],
    "often": ["sources.alpha.epochs=2.5", "sources.beta.epochs=7"],
    "all of it": ["sources.alpha.weight=0.6", "sources.alpha.num_conversations=20", "sources.alpha.epochs=1.5"],
    "one source less": ["sources.beta.enabled=false"],
}


@pytest.mark.parametrize("changes", MIXING.values(), ids=MIXING)
@pytest.mark.parametrize("valid", [f"valid_share={SHARE}", "valid_conversations=12"])
def test_mixing_changes_nothing_of_what_is_held_out(valid: str, changes: list[str], raw: Any) -> None:
    plain, mixed = built(raw, valid=valid), built(raw, *changes, valid=valid)
    held = packed(plain, "valid")
    assert len(of("alpha", held)) > 5
    names = {"alpha"} if "sources.beta.enabled=false" in changes else {"alpha", "beta"}
    assert packed(mixed, "valid") == Counter({row: count for row, count in held.items() if row[0] in names})
    assert packed(mixed, "train") != packed(plain, "train")
    assert not set(packed(mixed, "train")) & set(held)


def groups(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    return rng.integers(0, 2**64, count, dtype=np.uint64)


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    weight=st.floats(0.3, 1),
    count=st.none() | st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
def test_for_any_weight_and_any_other_source_the_same_are_held_out(
    sizes: list[int], weight: float, count: int | None, seed: int
) -> None:
    """The first source, whose conversations nobody else has, gives the same whatever is built with it.

    As long as its weight leaves it as many as are held out, and some to learn.
    """
    rng = np.random.default_rng(seed)
    mine = groups(rng, 500)
    others = [groups(rng, size) for size in sizes]
    source = np.repeat(np.arange(1 + len(sizes)), [len(mine), *sizes])
    alone = held_out(mine, np.zeros(len(mine)), SHARE, count, seed)
    together = held_out(np.concatenate([mine, *others]), source, SHARE, count, seed)
    assert together[: len(mine)].tolist() == alone.tolist()
    asked = [Conversation((Message("user", f"{n}?"), Message("assistant", "yes"))) for n in range(500)]
    every = np.array([group_digest(item) for item in asked], np.uint64)
    kept = np.array([is_sampled(item, weight, seed) for item in asked])
    before, after = (held_out(item, np.zeros(len(item)), SHARE, count, seed) for item in (every, every[kept]))
    assert set(every[before].tolist()) == set(every[kept][after].tolist())


@given(
    size=st.integers(0, 300),
    epochs=st.floats(1, 100),
    count=st.none() | st.integers(1, 400),
    seed=st.integers(0, 2**32),
)
def test_uses_are_the_epochs_rounded_down_or_up_and_exactly_as_many_as_asked_for(
    size: int, epochs: float, count: int | None, seed: int
) -> None:
    mine = groups(np.random.default_rng(seed), size)
    uses = repeats(mine, epochs, count, seed)
    assert (uses > 0).sum() == min(size, size if count is None else count)
    assert set(uses[uses > 0].tolist()) <= {int(epochs), int(np.ceil(epochs))}
    order = np.random.default_rng(seed).permutation(size)
    assert repeats(mine[order], epochs, count, seed).tolist() == uses[order].tolist()


def test_a_number_of_conversations_is_held_out_of_each_source(raw: Any) -> None:
    valid = packed(built(raw, valid="valid_conversations=12"), "valid")
    assert [len(of(name, valid)) for name in ("alpha", "beta")] == [12, 12]
    fewer = packed(built(raw, valid="valid_conversations=5"), "valid")
    assert set(fewer) < set(valid)


def test_a_number_to_hold_out_that_leaves_nothing_to_learn_is_refused(write_mixture: Callable[..., Any]) -> None:
    raw = write_mixture(alpha=talks("alpha", 50), beta=talks("beta", 4))
    with pytest.raises(DataError, match="beta: valid_conversations=4, but of its 4 at most 3 can be held out"):
        built(raw, valid="valid_conversations=4")
    shards = built(raw, valid="valid_conversations=3")
    assert len(of("beta", packed(shards, "train"))) == 1
    assert len(of("beta", packed(shards, "valid"))) == 3


OPENINGS: dict[str, Callable[[str], str]] = {
    "case": lambda text: text.upper(),
    "full case folding": lambda text: text.replace("ß", "ss"),
    "white space": lambda text: "  " + text.replace(" ", "\n\t ") + " ",
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "all of it": lambda text: unicodedata.normalize("NFD", text.upper().replace(" ", "\u00a0  ")),
}


def test_conversations_that_open_alike_are_on_one_side(write_mixture: Callable[..., Any]) -> None:
    """In whatever source, with whatever answers, and however often each form is there."""
    questions = [f"Où mène la Straße numéro {n}?" for n in range(100)]
    raw = write_mixture(
        alpha=[[text, f"plain {n}"] for n, text in enumerate(questions)],
        beta=[
            [change(text), f"{name} {n}", *(["more?", "no"] if n % 2 else [])]
            for n, text in enumerate(questions)
            for name, change in OPENINGS.items()
        ],
    )
    shards = built(raw, "seq_len=256")
    table = shards.documents
    opening = np.where(table.source == 0, table.row, table.row // len(OPENINGS))
    sides = [set(table.held_out[opening == number].tolist()) for number in range(100)]
    assert all(len(side) == 1 for side in sides)
    assert 3 < sum(side == {True} for side in sides) < 25
    assert len(set(table.group.tolist())) == 100


@pytest.mark.parametrize("valid", ["valid_share=0.1", "valid_conversations=10"])
def test_seeds_hold_out_and_repeat_others(valid: str, raw: Any) -> None:
    one, two = (
        built(raw, f"seed={seed}", "sources.alpha.num_conversations=90", "sources.alpha.epochs=1.5", valid=valid)
        for seed in (1, 2)
    )
    for split in ("train", "valid"):
        first, second = packed(one, split), packed(two, split)
        assert len(set(first) & set(second)) < 0.9 * min(len(first), len(second))


def test_nothing_held_out_is_asked_for_by_a_share_of_nothing(raw: Any) -> None:
    shards = built(raw, valid="valid_share=0")
    assert packed(shards, "valid") == Counter()
    assert packed(shards, "train").total() == 2 * NUM_ROWS
