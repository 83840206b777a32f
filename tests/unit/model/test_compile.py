"""Compiled blocks compute what plain ones do, and are compiled once, whatever comes in a batch."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from sft.config.model import ActivationCheckpointing, LoraConfig
from sft.errors import ConfigError
from sft.model.attention import Documents
from sft.model.compile import compile_blocks
from sft.model.lora import add_adapters, is_adapter
from sft.model.neox.model import NeoX

# Other numbers of tokens, of documents and of tokens per document; and the batch of who has nothing to compute.
BATCHES = ((17, 40), (3,), (90, 1, 7), (50, 50), (1,), (2, 2, 2))
NUM_PARTS = 4
"""Compiled pieces of a block; one version of each serves all blocks."""


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def num_compiled() -> int:
    return counters["stats"]["unique_graphs"]


def results(model: NeoX, lengths: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Hidden states and all gradients of a batch."""
    model.zero_grad()
    ids_T = torch.arange(sum(lengths)) * 7 % model.config.vocab_size
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden_TD = model(ids_T, Documents.of(lengths))
    hidden_TD.square().mean().backward()
    return [hidden_TD.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def num_bytes_kept(model: NeoX, policy: ActivationCheckpointing) -> int:
    """What the backward pass of a batch is given, besides parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = 0 if storage.data_ptr() in own else storage.nbytes()
        return tensor

    model.activation_checkpointing = policy
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_TD = model(torch.arange(60), Documents.of([60]))
    total = sum(sizes.values())
    hidden_TD.sum().backward()
    return total


def test_compiled_for_real_once_for_all_batches_with_the_same_results(model: NeoX) -> None:
    expected = [results(model, lengths, torch.float32) for lengths in BATCHES]
    compile_blocks(model)
    for lengths, plain in zip(BATCHES, expected, strict=True):
        for one, other in zip(results(model, lengths, torch.float32), plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert num_compiled() == NUM_PARTS, lengths


def test_it_plays_with_cheap_recomputation(model: NeoX) -> None:
    plain = copy.deepcopy(model)
    plain.activation_checkpointing = model.activation_checkpointing = "cheap"
    compile_blocks(model, "aot_eager")
    for lengths in BATCHES:
        pairs = zip(*(results(each, lengths, torch.bfloat16) for each in (model, plain)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert num_compiled() == NUM_PARTS
    assert num_bytes_kept(model, "cheap") < num_bytes_kept(plain, "none") / 1.4


def test_it_plays_with_full_recomputation_and_adapters(model: NeoX) -> None:
    add_adapters(model, LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.fill_(0.01)
    plain = copy.deepcopy(model)
    plain.activation_checkpointing = model.activation_checkpointing = "full"
    compile_blocks(model, "aot_eager")
    for lengths in BATCHES:
        pairs = zip(*(results(each, lengths, torch.float32) for each in (model, plain)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    # The first block's input is frozen and needs no gradient: it has versions of its own.
    assert num_compiled() <= 2 * NUM_PARTS


def test_names_of_parameters_stay(model: NeoX) -> None:
    before = list(model.state_dict())
    compile_blocks(model)
    assert list(model.state_dict()) == before


def test_a_missing_compiler_is_told_before_the_first_step(model: NeoX, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler no-such-compiler"):
        compile_blocks(model)
