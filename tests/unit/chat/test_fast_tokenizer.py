"""A fast tokenizer gives the reference's ids on every text, or it is refused by name."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.chat.fast_tokenizer import PROBES, Encode, FastTokenizer, Flat, check_sample, compare
from sft.chat.formats.stablelm import TAGS
from sft.chat.tokenizer import ChatTokenizer
from sft.errors import ConfigError

ROOT = Path(__file__).parents[3]
PIECES = ["<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>", "<|endoftext|>", "<|padding|>", "<|", "|>", "e\u0301", "\u0323"]
PIECES += [
    " ",
    "  ",
    " " * 24,
    " " * 25,
    "\t",
    "\n",
    "\r\n",
    "\u00a0",
    "'s",
    "'",
    "1",
    "a",
    "é",
    "你",
    "👩‍💻",
    "\u200d",
    "가",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=("Cs",)), max_size=12).map("".join)
RNG = random.Random(0)
WORDS = ["".join(RNG.choices("aeiou bcdfgs\n", k=RNG.randint(8, 60))) for _ in range(3000)]


def flat(runs: Sequence[Sequence[int]]) -> Flat:
    return np.array([token for run in runs for token in run], np.uint32), np.array([len(run) for run in runs], np.int64)


def reference(tokenizer: ChatTokenizer) -> Encode:
    return lambda texts: flat(tokenizer.encode(list(texts)))


def runs(encoded: Flat) -> list[list[int]]:
    ids_T, lengths_N = encoded
    return [part.tolist() for part in np.split(ids_T, np.cumsum(lengths_N)[:-1])] if len(lengths_N) else []


@pytest.fixture(scope="module")
def fast(tokenizer: ChatTokenizer) -> FastTokenizer:
    pytest.importorskip("fastokens")
    return FastTokenizer(tokenizer.json, reference(tokenizer))


@pytest.fixture(scope="module")
def fast_neox(neox_20b: ChatTokenizer) -> FastTokenizer:
    pytest.importorskip("fastokens")
    return FastTokenizer(neox_20b.json, reference(neox_20b))


# ------------------------------------------------------------------------------------------------ equal ids


@given(texts=st.lists(TEXTS, max_size=6))
@settings(max_examples=200)
def test_hostile_texts_have_the_reference_s_ids(
    texts: list[str], fast: FastTokenizer, tokenizer: ChatTokenizer
) -> None:
    assert runs(fast.encode_flat(texts)) == tokenizer.encode(texts)


@given(texts=st.lists(TEXTS, max_size=6))
@settings(max_examples=200)
def test_hostile_texts_have_the_published_tokenizer_s_ids(
    texts: list[str], fast_neox: FastTokenizer, neox_20b: ChatTokenizer
) -> None:
    assert runs(fast_neox.encode_flat(texts)) == neox_20b.encode(texts)


def test_every_character_that_is_assigned_has_the_reference_s_ids(
    fast: FastTokenizer, tokenizer: ChatTokenizer
) -> None:
    """Planes 0 to 3 in part, each character between letters, behind a blank and before an accent."""
    points = [*range(0x0, 0xD800), *range(0xF900, 0x12000), *range(0x1D000, 0x1FC00)]
    texts = [
        "".join(f"{chr(point)}a {chr(point)}\u0301'" for point in points[at : at + 64])
        for at in range(0, len(points), 64)
    ]
    assert runs(fast.encode_flat(texts)) == tokenizer.encode(texts)


def test_a_second_time_gives_the_same_ids(fast: FastTokenizer) -> None:
    texts = ["x" * 70_000, "y" * 65_536, "word " * 1000, *PROBES]
    once, again = fast.encode_flat(texts), fast.encode_flat(texts)
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1], again[1])


@pytest.mark.parametrize("tag", ["<|endoftext|>", "<|padding|>", *TAGS])
def test_the_text_of_a_control_token_is_text(tag: str, fast: FastTokenizer, tokenizer: ChatTokenizer) -> None:
    ids_T, _ = fast.encode_flat([tag, f"a{tag}b", f"{tag}{tag}"])
    assert not set(ids_T.tolist()) & set(tokenizer.control_ids)


def test_lengths_say_where_each_text_ends(fast: FastTokenizer, tokenizer: ChatTokenizer) -> None:
    texts = ["", "one", "", "two three", ""]
    encoded = fast.encode_flat(tuple(texts))
    assert runs(encoded) == tokenizer.encode(texts)
    assert (encoded[0].dtype, encoded[1].dtype) == (np.uint32, np.int64)
    assert [part.tolist() for part in fast.encode_flat([])] == [[], []]


# ------------------------------------------------------------------------------------------------ refused

Edit = Callable[[dict[str, Any]], None]


def drop_normalizer(content: dict[str, Any]) -> None:
    content["normalizer"] = None


def add_leading_space(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def drop_space_tokens(content: dict[str, Any]) -> None:
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"].strip()]


def unmark_tags(content: dict[str, Any]) -> None:
    for entry in content["added_tokens"]:
        entry["special"] = False


EDITS: list[Edit] = [drop_normalizer, add_leading_space, unmark_tags]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_a_tokenizer_that_differs_is_refused(edit: Edit, tokenizer: ChatTokenizer) -> None:
    pytest.importorskip("fastokens")
    content = json.loads(tokenizer.json)
    edit(content)
    with pytest.raises(ConfigError, match="the reference as") as caught:
        FastTokenizer(json.dumps(content), reference(tokenizer))
    assert "tokenizer_backend=tokenizers" in str(caught.value)


def test_a_published_tokenizer_without_its_space_tokens_is_refused(neox_20b: ChatTokenizer) -> None:
    pytest.importorskip("fastokens")
    content = json.loads(neox_20b.json)
    drop_space_tokens(content)
    with pytest.raises(ConfigError, match="the reference as"):
        FastTokenizer(json.dumps(content), reference(neox_20b))


@pytest.mark.parametrize("mistake", ["a last id too few", "one text late"])
def test_a_backend_that_miscounts_is_refused(
    mistake: str, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastokens")

    def encode_flat(texts: Sequence[str]) -> Flat:
        wrong = [run[:-1] for run in tokenizer.encode(list(texts))]
        return flat(wrong if mistake == "a last id too few" else [[], *tokenizer.encode(list(texts))[:-1]])

    monkeypatch.setattr(FastTokenizer, "encode_flat", lambda _, texts: encode_flat(texts))
    with pytest.raises(ConfigError, match="the reference as"):
        FastTokenizer(tokenizer.json, reference(tokenizer))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "WordLevel", "vocab": {}}}'])
def test_a_file_that_the_package_cannot_read_is_refused(content: str, tokenizer: ChatTokenizer) -> None:
    pytest.importorskip("fastokens")
    with pytest.raises(ConfigError, match="cannot read this tokenizer"):
        FastTokenizer(content, reference(tokenizer))


def test_without_the_package_the_extra_is_named(tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        FastTokenizer(tokenizer.json, reference(tokenizer))
    assert "pip install 'sft[fast]'" in str(caught.value)


COUNT_THREADS = """
import os, sys
from sft.chat import fast_tokenizer

fast_tokenizer.compare = lambda *_: None
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
fast = fast_tokenizer.FastTokenizer(sys.stdin.read(), None)
fast.encode_flat([f"text {number} " * 50 for number in range(2000)])
fast.encode_flat(["word " * 200_000])
print(threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_it_encodes_on_the_thread_that_calls(tokenizer: ChatTokenizer) -> None:
    pytest.importorskip("fastokens")
    environment = {name: value for name, value in os.environ.items() if name != "FASTOKENS_BPE_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        input=tokenizer.json,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0"


# ------------------------------------------------------------------------------------------------ the sample


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_about_the_wanted_share_is_chosen(share: float, tokenizer: ChatTokenizer) -> None:
    chosen = check_sample(flat(tokenizer.encode(WORDS)), share)
    spread = (len(WORDS) * share) ** 0.5
    assert abs(len(chosen) - len(WORDS) * share) <= 4 * spread + 1


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_text_is_chosen_in_any_batch_or_in_none(share: float, tokenizer: ChatTokenizer) -> None:
    chosen = {WORDS[number] for number in check_sample(flat(tokenizer.encode(WORDS)), share)}
    found = []
    for start in range(0, len(WORDS), 7):
        part = WORDS[start : start + 7][::-1]
        found += [part[number] for number in check_sample(flat(tokenizer.encode(part)), share)]
    assert len(found) == len(set(found))
    assert set(found) == chosen
    assert chosen


def test_a_larger_share_chooses_the_same_texts_and_more(tokenizer: ChatTokenizer) -> None:
    encoded = flat(tokenizer.encode(WORDS))
    small, large = (set(check_sample(encoded, share).tolist()) for share in (0.02, 0.2))
    assert small < large


def test_nothing_and_everything_can_be_chosen(tokenizer: ChatTokenizer) -> None:
    encoded = flat(tokenizer.encode(WORDS[:50]))
    assert check_sample(encoded, 0.0).tolist() == []
    assert check_sample(encoded, 1.0).tolist() == list(range(50))
    assert check_sample(flat([]), 0.5).tolist() == []


@pytest.mark.parametrize("batch", [[[]], [[], [5], []], [[5], []], [[], [5]]], ids=str)
def test_a_text_without_ids_is_always_chosen(batch: list[list[int]]) -> None:
    empty = [number for number, run in enumerate(batch) if not run]
    assert check_sample(flat(batch), 1e-9).tolist() == empty


# ------------------------------------------------------------------------------------------------ comparing

BATCH = ["one", "", "two three", "four", "five"]


def spoilt(tokenizer: ChatTokenizer, number: int) -> Flat:
    """The batch's ids, those of one text shortened by one."""
    right = tokenizer.encode(BATCH)
    right[number] = right[number][:-1]
    return flat(right)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_the_text_that_differs_is_shown(number: int, tokenizer: ChatTokenizer) -> None:
    with pytest.raises(ConfigError, match=f"fastokens encodes '{BATCH[number]}' as") as caught:
        compare(BATCH, spoilt(tokenizer, number), reference(tokenizer))
    assert "tokenizer_backend=tokenizers" in str(caught.value)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_only_the_chosen_texts_are_compared(number: int, tokenizer: ChatTokenizer) -> None:
    asked: list[str] = []

    def counted(texts: Sequence[str]) -> Flat:
        asked.extend(texts)
        return reference(tokenizer)(texts)

    others = np.array([other for other in range(len(BATCH)) if other != number])
    compare(BATCH, spoilt(tokenizer, number), counted, others)
    assert asked == [BATCH[other] for other in others]
    with pytest.raises(ConfigError, match=repr(BATCH[number])):
        compare(BATCH, spoilt(tokenizer, number), counted, np.array([number]))


def test_nothing_chosen_is_nothing_compared_though_all_differs(tokenizer: ChatTokenizer) -> None:
    asked: list[Sequence[str]] = []

    def counted(texts: Sequence[str]) -> Flat:
        asked.append(texts)
        return reference(tokenizer)(texts)

    compare(BATCH, spoilt(tokenizer, 0), counted, np.array([], np.int64))
    assert asked == [[]]
