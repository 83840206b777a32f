"""The noise of a document is the same wherever and whenever it is trained on."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sft.config.model import ModelConfig
from sft.data.batches.batch import Batch, micro_batches
from sft.data.batches.sampler import Order
from sft.data.shards import Shards, Split
from sft.hashing import hashes
from sft.model.attention import Documents
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.neox.model import NeoX

WIDTH, ALPHA = 64, 5.0
ORDER = Order(num_packs=24, batch_packs=8, epochs=2, seed=7)


@pytest.fixture
def split(tiny_shards: Path) -> Split:
    return Shards.open(tiny_shards).split("train")


def noise_of(batch: Batch, alpha: float = ALPHA, width: int = WIDTH) -> Tensor:
    return EmbeddingNoise.of(batch.doc_lengths, batch.doc_seeds, alpha, width, "cpu").values(width)


def by_document(split: Split, step: int, packs: list[int], size: int) -> dict[int, Tensor]:
    """The noise of each document of some packs of a step, computed `size` packs at a time."""
    found = {}
    for batch in micro_batches(split, packs, size, ORDER.noise_seed(step)):
        found.update(zip(batch.doc_ids, noise_of(batch).split(batch.doc_lengths), strict=True))
    return found


def assert_same_bits(found: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[doc_id], expected[doc_id]) for doc_id in expected)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_any_micro_batch_sees_the_same_noise(split: Split, size: int) -> None:
    packs = ORDER.batch(1)
    assert_same_bits(by_document(split, 1, packs, size), by_document(split, 1, packs, 4))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_sees_the_same_noise(split: Split, num_ranks: int) -> None:
    packs, found = ORDER.batch(2), {}
    for rank in range(num_ranks):
        found.update(by_document(split, 2, packs[rank::num_ranks], 2))
    assert_same_bits(found, by_document(split, 2, packs, 8))


def test_other_steps_and_other_runs_see_other_noise(split: Split) -> None:
    pack = [3]
    first, later = (by_document(split, step, pack, 1) for step in (0, 3))
    assert not any(torch.equal(first[doc_id], later[doc_id]) for doc_id in first)
    seeds = {Order(24, 8, 2, seed).noise_seed(step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400


def test_no_two_documents_tokens_or_dimensions_share_their_noise(split: Split) -> None:
    (batch,) = micro_batches(split, ORDER.batch(0), 8, ORDER.noise_seed(0))
    bits_TD = EmbeddingNoise.of([1] * 400, hashes(1, range(400)).tolist(), 1.0, WIDTH, "cpu").values(WIDTH)
    assert len(set(batch.doc_seeds)) == len(batch.doc_ids)
    # Of 25,600 numbers with 2^23 values, chance makes about 39 pairs equal.
    assert bits_TD.unique().numel() > bits_TD.numel() - 100
    assert len(np.unique(noise_of(batch).numpy(), axis=0)) == len(batch.input_ids_T)


def test_noise_is_uniform_and_as_large_as_the_paper_says() -> None:
    lengths, width = (100, 400), 256
    values_TD = EmbeddingNoise.of(lengths, (11, 12), ALPHA, width, "cpu").values(width)
    assert values_TD.dtype == torch.float32
    for length, part in zip(lengths, values_TD.split(lengths), strict=True):
        size = ALPHA / math.sqrt(length * width)
        assert 0.999 * size < float(part.abs().max()) < size
        assert abs(float(part.mean())) < 4 * size / math.sqrt(3 * part.numel())
        quarters = torch.histc(part, bins=8, min=-size, max=size) / part.numel()
        torch.testing.assert_close(quarters, torch.full((8,), 1 / 8), rtol=0.05, atol=0)


def test_the_numbers_are_those_of_splitmix64() -> None:
    """Frozen by an own count in Python's integers, so that no version of PyTorch and no device can change them."""
    seed, mask = 0x0123456789ABCDEF, (1 << 64) - 1
    token_seed = int(hashes(seed, 0)[0])
    expected = []
    for step in range(1, 9):
        value = (token_seed + step * 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
        expected.append((2 * (value >> 41) + 1 - (1 << 23)) / (1 << 23) / math.sqrt(8))
    found = EmbeddingNoise.of([1], [seed], 1.0, 8, "cpu").values(8)[0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-7, atol=0)


def test_only_training_with_noise_asks_for_it(split: Split) -> None:
    assert all(batch.doc_seeds == () for batch in micro_batches(split, [0, 1], 1))


def test_the_model_adds_it_to_the_embeddings_and_nowhere_else(
    model: NeoX, config: ModelConfig, input_ids_T: Tensor
) -> None:
    lengths = (17, 43)
    noise = EmbeddingNoise.of(lengths, (1, 2), 50.0, config.hidden_size, "cpu")
    found = model(input_ids_T, Documents.of(lengths), noise=noise)
    plain = model(input_ids_T, Documents.of(lengths))
    with torch.no_grad():
        # An embedding of its own for each token, which holds the noise already.
        model.gpt_neox.embed_in.weight = torch.nn.Parameter(
            model.gpt_neox.embed_in.weight[input_ids_T] + noise.values(config.hidden_size)
        )
    assert torch.equal(found, model(torch.arange(60), Documents.of(lengths)))
    assert not torch.allclose(found, plain)


def test_noise_in_one_document_does_not_reach_another(model: NeoX, config: ModelConfig, input_ids_T: Tensor) -> None:
    lengths = (17, 43)
    outputs = [
        model(
            input_ids_T,
            Documents.of(lengths),
            noise=EmbeddingNoise.of(lengths, (1, seed), 5.0, config.hidden_size, "cpu"),
        )
        for seed in (2, 3)
    ]
    (first, second), (other_first, other_second) = (output.split(lengths) for output in outputs)
    assert torch.equal(first, other_first)
    assert not torch.allclose(second, other_second)
