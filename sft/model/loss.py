"""Cross-entropy at the supervised positions, without holding the logits of all of them at once.

Shape letters: T tokens, S supervised ones among them, C rows of a chunk, D width, V vocabulary rows.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ROWS = 2048
"""Rows of logits held at a time: enough to keep a GPU's matrix units busy, 0.4 GB in fp32 for 50k tokens."""


def supervised_loss_sum(
    hidden_TD: Tensor, head_weight_VD: Tensor, targets_T: Tensor, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """The summed loss of predicting each target that is not negative; 0 if there is none.

    The matrix products run in the autocast format if autocast is on; sums, softmax, the result and the head's
    gradient are fp32. Gradients are computed with the loss, so that no logits are computed twice.
    """
    if torch.is_grad_enabled() and (hidden_TD.requires_grad or head_weight_VD.requires_grad):
        loss: Tensor = _LossSum.apply(hidden_TD, head_weight_VD, targets_T, chunk_rows)  # type: ignore[no-untyped-call]
        return loss
    return token_losses(hidden_TD, head_weight_VD, targets_T, chunk_rows)[0].sum()


@torch.no_grad()
def token_losses(
    hidden_TD: Tensor, head_weight_VD: Tensor, targets_T: Tensor, chunk_rows: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Loss of each supervised position, and whether its target was the most likely token, for evaluation.

    Shapes: (S,) fp32, (S,) bool.
    """
    dtype = _matmul_dtype(hidden_TD)
    head_VD = head_weight_VD.to(dtype)
    # The empty first pieces are the result of a row without any target.
    losses = [hidden_TD.new_zeros(0, dtype=torch.float32)]
    hits = [hidden_TD.new_zeros(0, dtype=torch.bool)]
    for rows_C, targets_C in _chunks(targets_T, chunk_rows):
        logits_CV = _product(hidden_TD[rows_C].to(dtype), head_VD.t())
        hits.append(logits_CV.argmax(-1) == targets_C)
        losses.append(_softmax_(logits_CV, targets_C))
    return torch.cat(losses), torch.cat(hits)


class _LossSum(torch.autograd.Function):
    """The loss is a sum, so its gradients are known up to one factor before the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_weight_VD: Tensor, targets_T: Tensor, chunk_rows: int) -> Tensor:
        dtype = _matmul_dtype(hidden_TD)
        # fp16 would round away small probabilities; gradients of one loss never exceed 1, so there is room.
        scale = 2.0**15 if dtype == torch.float16 else 1.0
        head_VD = head_weight_VD.to(dtype)
        hidden_grad_TD = torch.zeros_like(hidden_TD)
        losses = [hidden_TD.new_zeros(0, dtype=_sum_dtype(dtype))]
        # A frozen head has no gradient.
        head_grad_VD = torch.zeros_like(head_weight_VD, dtype=losses[0].dtype) if ctx.needs_input_grad[1] else None
        for rows_C, targets_C in _chunks(targets_T, chunk_rows):
            hidden_CD = hidden_TD[rows_C].to(dtype)
            logits_CV = _product(hidden_CD, head_VD.t())
            losses.append(_softmax_(logits_CV, targets_C))
            logits_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1
            grad_CV = logits_CV.mul_(scale).to(dtype)
            hidden_grad_TD[rows_C] = _gradient(grad_CV, head_VD).div_(scale).to(hidden_TD.dtype)
            if head_grad_VD is not None:
                head_grad_VD.add_(_gradient(grad_CV.t(), hidden_CD), alpha=1 / scale)
        ctx.save_for_backward(hidden_grad_TD, None if head_grad_VD is None else head_grad_VD.to(head_weight_VD.dtype))
        return torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_TD, head_grad_VD = ctx.saved_tensors
        return hidden_grad_TD * upstream, None if head_grad_VD is None else head_grad_VD * upstream, None, None


def _chunks(targets_T: Tensor, chunk_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions and targets of the supervised tokens, at most chunk_rows at a time."""
    rows_S = (targets_T >= 0).nonzero().squeeze(1)
    if len(rows_S):
        yield from zip(torch.split(rows_S, chunk_rows), torch.split(targets_T[rows_S], chunk_rows), strict=True)


def _softmax_(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Turn logits into probabilities in place; returns each row's loss."""
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    target_C1 = logits_CV.gather(1, targets_C[:, None])
    total_C1 = logits_CV.sub_(largest_C1).exp_().sum(-1, keepdim=True)
    logits_CV.div_(total_C1)
    return (total_C1.log() + (largest_C1 - target_C1)).squeeze(1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product whose sums and result are fp32 even where the operands are fp16 or bf16."""
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype == _sum_dtype(left.dtype):
            return left @ right
        if left.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):  # from PyTorch 2.8 on
            return torch.mm(left, right, out_dtype=torch.float32)
        return left.float() @ right.float()


def _gradient(left: Tensor, right: Tensor) -> Tensor:
    """As `_product`, but a CPU rounds a bf16 product once more, as in every other layer: twice as fast as fp32."""
    if left.dtype != torch.bfloat16 or left.device.type != "cpu":
        return _product(left, right)
    with torch.autocast("cpu", enabled=False):
        return (left @ right).float()


def _matmul_dtype(hidden_TD: Tensor) -> torch.dtype:
    kind = hidden_TD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_TD.dtype


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
