"""Activation checkpointing trades memory for time, and changes no bit."""

import typing
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sft.config.model import ActivationCheckpointing
from sft.model.attention import Documents
from sft.model.neox.model import NeoX

POLICIES: tuple[ActivationCheckpointing, ...] = typing.get_args(ActivationCheckpointing)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = (1, 17, 40, 2)


class Observed(TorchDispatchMode):
    """Notes which operations run, and which of their results are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self._results: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._results[StorageWeakRef(storage)] = storage.nbytes()
        return out

    @property
    def num_bytes_alive(self) -> int:
        return sum(num_bytes for reference, num_bytes in self._results.items() if not reference.expired())


def hidden(model: NeoX, input_ids_T: Tensor, policy: ActivationCheckpointing, dtype: torch.dtype) -> Tensor:
    model.activation_checkpointing = policy
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        hidden_TD: Tensor = model(input_ids_T, Documents.of(LENGTHS))
    return hidden_TD


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradients_are_the_same_to_the_bit(model: NeoX, input_ids_T: Tensor, dtype: torch.dtype) -> None:
    results = []
    for policy in POLICIES:
        model.zero_grad()
        loss = model.logits(hidden(model, input_ids_T, policy, dtype)).square().sum()
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in results[0])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_less_is_kept_the_more_is_recomputed(model: NeoX, input_ids_T: Tensor, dtype: torch.dtype) -> None:
    kept = {}
    for policy in POLICIES:
        with Observed() as observed:
            hidden_TD = hidden(model, input_ids_T, policy, dtype)
        kept[policy] = observed.num_bytes_alive
        hidden_TD.sum().backward()
    values = len(model.gpt_neox.layers) * sum(LENGTHS) * dtype.itemsize
    width, mlp_width = model.config.hidden_size, model.config.intermediate_size
    # Of every block, cheap does without two norms and one GELU; full also without the heads and the GELU's input.
    assert kept["none"] - kept["cheap"] > values * (2 * width + mlp_width)
    assert kept["cheap"] - kept["full"] > values * (4 * width + mlp_width)


def test_cheap_repeats_no_matrix_product_and_no_attention(model: NeoX, input_ids_T: Tensor) -> None:
    def num_products(policy: ActivationCheckpointing) -> int:
        hidden_TD = hidden(model, input_ids_T, policy, torch.float32)
        with Observed() as observed:
            hidden_TD.sum().backward()
        return sum(name in ("mm", "addmm") or "attention" in name for name in observed.operations)

    assert num_products("cheap") == num_products("none")
    # Full repeats attention to each document, and all products of a block but the last, whose result nobody needs.
    assert num_products("full") == num_products("none") + len(model.gpt_neox.layers) * (3 + len(LENGTHS))
