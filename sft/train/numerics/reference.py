"""Loss and gradient of a pack by definition: fp32, one document at a time, without our kernels or chunks.

Shape letters: T tokens of the pack without padding, S supervised ones among them, D width, V vocabulary rows;
of one document: t tokens, s supervised ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sft.config.model import Precision
from sft.data.batches.batch import join
from sft.data.shards import Pack
from sft.model.attention import Documents
from sft.model.base import LanguageModel
from sft.model.kv_cache import KVCache
from sft.model.loss import supervised_loss_sum
from sft.train.engine.forward import to_device
from sft.train.engine.precision import autocast


@dataclass(frozen=True)
class Result:
    """The result of a forward and backward pass over a pack."""

    loss_sum: float
    hidden_TD: Tensor
    gradients: tuple[Tensor, ...]
    """Gradients of the summed loss, for the requested weights."""


class _WholeDocument(KVCache):
    """Makes the model attend as in generation: with an explicit mask instead of a kernel for packs."""

    def __init__(self) -> None:
        super().__init__(max_tokens=0)

    def append(self, layer: int, k_THE: Tensor, v_THE: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return k_THE, v_THE

    def advance(self, num_new_tokens: int) -> None:
        """Keep nothing, so that a block can be recomputed in the backward pass."""


def reference(model: LanguageModel, pack: Pack, weights: Sequence[Tensor]) -> Result:
    """The pack's loss, hidden states and gradients of these weights, in fp32."""
    device = model.head_weight.device
    loss_sum, hidden = 0.0, []
    sums = [torch.zeros_like(weight) for weight in weights]
    with _exact(model, device):
        for _, place in pack.documents():
            ids_t = torch.from_numpy(pack.input_ids_T[place].astype(np.int64)).to(device)
            mask_t = torch.from_numpy(pack.loss_mask_T[place].astype(bool)).to(device)
            hidden_tD = model(ids_t, Documents.of([len(ids_t)], device), _WholeDocument())
            hidden.append(hidden_tD.detach())
            loss = _loss_sum(model, hidden_tD, ids_t, mask_t)
            if loss is not None:
                loss_sum += loss.item()
                for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                    total += gradient
    return Result(loss_sum, torch.cat(hidden), tuple(sums))


def computed(model: LanguageModel, pack: Pack, precision: Precision, weights: Sequence[Tensor]) -> Result:
    """The same as training computes it: all documents at once, by the attention kernel, in this precision."""
    device = model.head_weight.device
    inputs = to_device(join([pack]), device)
    with torch.enable_grad():
        with autocast(device, precision):
            hidden_TD = model(inputs.input_ids_T, inputs.documents)
            loss = supervised_loss_sum(hidden_TD, model.head_weight, inputs.targets_T)
        gradients = torch.autograd.grad(loss, weights)
    return Result(loss.item(), hidden_TD.detach().float(), gradients)


def _loss_sum(model: LanguageModel, hidden_tD: Tensor, ids_t: Tensor, mask_t: Tensor) -> Tensor | None:
    """Position t - 1 predicts token t wherever token t has loss, and nothing predicts the first token."""
    predicted = mask_t[1:]
    if not predicted.any():
        return None
    logits_sV = model.logits(hidden_tD[:-1][predicted])
    return cross_entropy(logits_sV, ids_t[1:][predicted], reduction="sum")


@contextmanager
def _exact(model: LanguageModel, device: torch.device) -> Iterator[None]:
    """Compute every product in full fp32, with memory for one block at a time; restores all settings afterwards."""
    precision, recompute = torch.get_float32_matmul_precision(), model.activation_checkpointing
    torch.set_float32_matmul_precision("highest")
    model.activation_checkpointing = "full"
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        model.activation_checkpointing = recompute
