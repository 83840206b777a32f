"""AdamW in plain PyTorch, on one device or sharded over many: the reference that every other engine is proven against.

T = tokens of the micro-batch, S = supervised ones among them.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from sft.config.train import TrainConfig
from sft.data.batches.batch import Batch
from sft.model.attention import Documents
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.neox.model import NeoX
from sft.model.objective import Objective
from sft.train.distributed.ranks import as_peer_errors
from sft.train.engine.base import MOMENTS, Kind, StepResult, TensorSlice, TensorSource
from sft.train.engine.fsdp import REPLICAS, SHARDS, local, local_start, reduce_gradients, shard
from sft.train.engine.loss_scale import LossScale
from sft.train.engine.optimizer import parameter_groups, saved_bytes, trained
from sft.train.engine.precision import HALF, autocast
from sft.train.held_out_loss import measure


class TorchEngine:
    """AdamW on fp32 weights, forward and backward in the configured precision."""

    def __init__(self, model: NeoX, config: TrainConfig, device: torch.device, mesh: DeviceMesh | None = None) -> None:
        """A model on the meta device gets its memory here; `load` or `restore` fill it then."""
        self.model, self._config, self._device, self._mesh = model, config, device, mesh
        self.checkpoint_bytes = saved_bytes(model)
        self.is_shared = mesh is not None
        self._objective = Objective(model)
        if mesh is not None:
            shard(self._objective, mesh, HALF.get(config.precision))
        if any(parameter.is_meta for parameter in model.parameters()):
            self._objective.to_empty(device=device)
        self._parameters = dict(model.named_parameters())
        optimizer = config.optimizer
        self._optimizer = torch.optim.AdamW(
            parameter_groups(model, optimizer),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            fused=True,
        )
        self._loss_scale = LossScale(config)
        self._num_updates = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic that the run computes in."""
        return autocast(self._device, self._config.precision)

    def forward_backward(self, batch: Batch, num_supervised: int, *, is_last: bool) -> None:
        """Add a micro-batch's share to the gradient of the step's mean loss."""
        reduce_gradients(self._objective, now=is_last)
        with as_peer_errors():
            with self.autocast():
                loss = self._objective(*self._sent(batch), noise=self._noise(batch))
            # Gradients are kept batch_packs times too large until the step: divided by the supervised tokens of a whole
            # step, those of one token would be lost below the smallest fp16 number.
            (loss * (self._loss_scale.value * self._config.batch_packs / num_supervised)).backward()
        self._loss_sum += loss.detach()

    def measure(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Loss of each supervised token, and whether it was the likeliest."""
        with as_peer_errors():
            return measure(self._objective, self._device, self.autocast(), batch)

    def step(self, lr: float) -> StepResult:
        """Clip, update the weights if everything is finite on every process, and forget the gradient."""
        scale = self._loss_scale.value
        gradients = [local(parameter.grad) for parameter in self._parameters.values() if parameter.grad is not None]
        loss_sum, norm = self._totals(gradients)
        grad_norm = norm / (self._config.batch_packs * scale)
        is_finite = math.isfinite(loss_sum) and math.isfinite(grad_norm)
        if is_finite:
            self._update(gradients, grad_norm, scale, lr)
        self._loss_scale.update(is_finite=is_finite)
        self._optimizer.zero_grad()
        self._loss_sum.zero_()
        return StepResult(loss_sum, grad_norm, scale, is_skipped=not is_finite)

    @property
    def share(self) -> int:
        """Which share of the weights this process holds."""
        return self._mesh.get_local_rank(SHARDS) if self._mesh is not None else 0

    def slices(self) -> Iterator[TensorSlice]:
        """What this process has to save."""
        if self._mesh is not None and self._mesh.get_local_rank(REPLICAS):
            return  # another replica holds the same
        for name, parameter in self._parameters.items():
            yield from _piece("weight", name, parameter, parameter)
            moments = self._optimizer.state.get(parameter, {})
            for kind in MOMENTS if moments else ():
                yield from _piece(kind, name, parameter, moments[kind])

    def state(self) -> dict[str, Any]:
        """The number of updates and the loss scale."""
        return {"num_updates": self._num_updates, "loss_scale": self._loss_scale.state()}

    @torch.no_grad()
    def load(self, source: TensorSource) -> None:
        """Take the weights to start from."""
        for name, parameter in self._parameters.items():
            _fill(_piece("weight", name, parameter, parameter), source)

    @torch.no_grad()
    def restore(self, source: TensorSource, state: dict[str, Any]) -> None:
        """Go on from what any engine has saved."""
        self.load(source)
        self._num_updates = state["num_updates"]
        self._loss_scale.restore(state["loss_scale"])
        if not self._num_updates:
            return
        for name, parameter in trained(self.model).items():
            states = {kind: torch.zeros_like(parameter) for kind in MOMENTS}
            for kind, moment in states.items():
                _fill(_piece(kind, name, parameter, moment), source)
            updates = torch.tensor(float(self._num_updates), device=self._device)
            self._optimizer.state[parameter] = {"step": updates, **states}

    def _totals(self, gradients: list[Tensor]) -> tuple[float, float]:
        """The step's loss and the norm of its gradient as it is kept, over all processes."""
        norms = torch.stack(torch._foreach_norm(gradients)).double()
        totals = torch.stack((self._loss_sum, norms.square().sum()))
        if self._mesh is not None:
            with as_peer_errors():
                # Replicas have computed other packs, and hold the same gradients.
                dist.all_reduce(totals[:1], group=self._mesh.get_group(REPLICAS))
                dist.all_reduce(totals, group=self._mesh.get_group(SHARDS))
        # The one moment of a step at which the CPU waits for the device.
        loss_sum, square = totals.tolist()
        return loss_sum, math.sqrt(square)

    def _update(self, gradients: list[Tensor], grad_norm: float, scale: float, lr: float) -> None:
        limit = self._config.optimizer.clip_norm
        clip = min(1.0, limit / grad_norm) if limit and grad_norm else 1.0
        torch._foreach_mul_(gradients, clip / (self._config.batch_packs * scale))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._num_updates += 1

    def _noise(self, batch: Batch) -> EmbeddingNoise | None:
        return EmbeddingNoise.for_batch(batch, self._config.neftune_alpha, self.model.config.hidden_size, self._device)

    def _sent(self, batch: Batch) -> tuple[Tensor, Documents, Tensor]:
        input_ids_T, targets_T = (self._send(array_T) for array_T in (batch.input_ids_T, batch.targets_T))
        return input_ids_T, Documents.of(batch.doc_lengths, self._device), targets_T

    def _send(self, array_T: NDArray[Any]) -> Tensor:
        tensor_T = torch.from_numpy(array_T)
        if self._device.type != "cuda":
            return tensor_T
        # From pinned memory the copy does not wait for the kernels that are still queued.
        return tensor_T.pin_memory().to(self._device, non_blocking=True)


def _piece(kind: Kind, name: str, parameter: Tensor, tensor: Tensor) -> Iterator[TensorSlice]:
    """This process's share of a parameter's weights or moments, if it has any."""
    share = local(tensor.detach())
    if share.numel():
        yield TensorSlice(kind, name, local_start(parameter), share, is_whole=share.numel() == parameter.numel())


def _fill(pieces: Iterable[TensorSlice], source: TensorSource) -> None:
    for piece in pieces:
        flat = source.flat(piece.kind, piece.name, piece.start, piece.start + piece.tensor.numel())
        piece.tensor.copy_(flat.view(piece.tensor.shape))
