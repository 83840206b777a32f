"""Hashes: sha256 to identify content, 64-bit counter-based hashes for reproducible pseudo-random numbers."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray


def file_sha256(path: Path) -> str:
    """The sha256 of a file as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """The sha256 of a text's UTF-8 bytes as hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def hashes(seeds: ArrayLike, numbers: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of each seed with each number, element by element; always an array with a dimension.

    Implemented here, because a library's random numbers may change with its version.
    """
    seed_N, number_N = (np.atleast_1d(np.asarray(values, np.uint64)) for values in (seeds, numbers))
    return mix(np.add(mix(seed_N), number_N))


def scatter(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter the bits of 64-bit integers; 0 stays 0.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014), a bijection.
    """
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatter the bits of 64-bit integers, those of 0 as well."""
    with np.errstate(over="ignore"):
        return scatter(value + np.uint64(0x9E3779B97F4A7C15))
