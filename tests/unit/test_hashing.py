"""Hashes are the published ones, for ever: they name data sets and order runs."""

import hashlib
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft.hashing import file_sha256, hashes, mix, scatter, text_sha256

WORDS = st.integers(0, 2**64 - 1)


def scattered(value: int) -> int:
    """The finaliser of SplitMix64 with whole numbers, as its authors print it."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def mixed(value: int) -> int:
    """SplitMix64 itself."""
    return scattered((value + 0x9E3779B97F4A7C15) % 2**64)


@given(value=WORDS)
def test_bits_are_scattered_as_published(value: int) -> None:
    array = np.array([value], np.uint64)
    assert scatter(array).tolist() == [scattered(value)]
    assert mix(array).tolist() == [mixed(value)]


@given(seed=WORDS, numbers=st.lists(WORDS, min_size=1, max_size=5))
def test_every_number_has_a_hash_of_its_own_for_each_seed(seed: int, numbers: list[int]) -> None:
    expected = [mixed((mixed(seed) + number) % 2**64) for number in numbers]
    assert hashes(seed, np.array(numbers, np.uint64)).tolist() == expected
    assert hashes([seed] * len(numbers), np.array(numbers, np.uint64)).tolist() == expected


def test_a_single_hash_is_an_array_too() -> None:
    assert hashes(1, 2).shape == (1,)


def test_content_is_named_by_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("ü".encode() * 1000)
    assert file_sha256(tmp_path / "x") == text_sha256("ü" * 1000) == hashlib.sha256(b"\xc3\xbc" * 1000).hexdigest()
