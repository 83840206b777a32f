"""AdamW in plain PyTorch, on one device or sharded over many: the reference that every other engine is tested against.

Shape letters: S supervised tokens of a batch.
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
from sft.model.objectives.base import LOSS, Objective
from sft.train.distributed.errors import as_peer_errors
from sft.train.engine.base import MOMENTS, Kind, StepResult, TensorSlice, TensorSource
from sft.train.engine.forward import measure, named_sums
from sft.train.engine.fsdp import REPLICAS, SHARDS, local, local_start, reduce_gradients, shard
from sft.train.engine.optimizer import adamw, saved_bytes, set_learning_rate, trained, unscale_and_clip_
from sft.train.engine.precision import HALF, autocast
from sft.train.engine.step_state import StepState


class TorchEngine:
    """AdamW on fp32 weights, forward and backward in the configured precision."""

    def __init__(
        self, objective: Objective, config: TrainConfig, device: torch.device, mesh: DeviceMesh | None = None
    ) -> None:
        """Allocate memory for a model on the meta device; `load` or `restore` fills it."""
        self._objective, self._config, self._device, self._mesh = objective, config, device, mesh
        self.model = objective.model
        self.checkpoint_bytes = saved_bytes(self.model)
        self.is_shared = mesh is not None
        if mesh is not None:
            shard(objective, mesh, HALF.get(config.precision))
        if any(parameter.is_meta for parameter in objective.parameters()):
            objective.to_empty(device=device)
        self._parameters = dict(self.model.named_parameters())
        self._optimizer = adamw(self.model, config.optimizer)
        self._step_state = StepState(config, objective.names, device)

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic that the run computes in."""
        return autocast(self._device, self._config.precision)

    def forward_backward(self, batch: Batch, num_supervised: int, *, is_last: bool) -> None:
        """Add a micro-batch's share to the gradient of the step's mean loss, and to the objective's sums."""
        reduce_gradients(self._objective, now=is_last)
        width, alpha = self.model.config.hidden_size, self._config.neftune_alpha
        with as_peer_errors():
            with self.autocast():
                sums = named_sums(self._objective, batch, self._device, noise_alpha=alpha, width=width)
            (sums[LOSS] * (self._step_state.gradient_scale / num_supervised)).backward()  # type: ignore[no-untyped-call]
        self._step_state.add(sums)

    def measure(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Loss of each supervised token, and whether it was the most likely."""
        with as_peer_errors():
            return measure(self._objective, self._device, self.autocast(), batch)

    def step(self, lr: float) -> StepResult:
        """Clip, update the weights if everything is finite on every process, and reset the gradient."""
        gradients = [local(parameter.grad) for parameter in self._parameters.values() if parameter.grad is not None]
        sums, norm = self._totals(gradients)
        scale = self._step_state.gradient_scale
        grad_norm = norm / scale
        is_finite = math.isfinite(sums[LOSS]) and math.isfinite(grad_norm)
        if is_finite:
            unscale_and_clip_(gradients, scale, grad_norm, self._config.optimizer.clip_norm)
            set_learning_rate(self._optimizer, lr)
            self._optimizer.step()
        self._optimizer.zero_grad()
        return self._step_state.finish(sums, grad_norm, is_finite=is_finite)

    @property
    def share(self) -> int:
        """Which share of the weights this process holds."""
        return self._mesh.get_local_rank(SHARDS) if self._mesh is not None else 0

    def slices(self) -> Iterator[TensorSlice]:
        """The slices that this process saves."""
        if self._mesh is not None and self._mesh.get_local_rank(REPLICAS):
            return  # another replica holds the same
        for name, parameter in self._parameters.items():
            yield from _slices("weight", name, parameter, parameter)
            moments = self._optimizer.state.get(parameter, {})
            for kind in MOMENTS if moments else ():
                yield from _slices(kind, name, parameter, moments[kind])

    def state(self) -> dict[str, Any]:
        """The number of updates and the loss scale."""
        return self._step_state.state()

    @torch.no_grad()
    def load(self, source: TensorSource) -> None:
        """Load the weights to start from."""
        for name, parameter in self._parameters.items():
            _fill(_slices("weight", name, parameter, parameter), source)

    @torch.no_grad()
    def restore(self, source: TensorSource, state: dict[str, Any]) -> None:
        """Resume from a checkpoint of any engine."""
        self.load(source)
        self._step_state.restore(state)
        num_updates = self._step_state.num_updates
        if not num_updates:
            return
        for name, parameter in trained(self.model).items():
            states = {kind: torch.zeros_like(parameter) for kind in MOMENTS}
            for kind, moment in states.items():
                _fill(_slices(kind, name, parameter, moment), source)
            updates = torch.tensor(float(num_updates), device=self._device)
            self._optimizer.state[parameter] = {"step": updates, **states}

    def _totals(self, gradients: list[Tensor]) -> tuple[dict[str, float], float]:
        """The step's sums and its gradient norm with the loss scale still applied, over all processes."""
        norms = torch.stack(torch._foreach_norm(gradients)).double()
        totals = torch.cat((self._step_state.sums_M(), norms.square().sum()[None]))
        if self._mesh is not None:
            with as_peer_errors():
                # Replicas have computed different packs, and hold the same gradients.
                dist.all_reduce(totals[:-1], group=self._mesh.get_group(REPLICAS))
                dist.all_reduce(totals, group=self._mesh.get_group(SHARDS))
        # The only point of a step at which the CPU waits for the device.
        *sums, square = totals.tolist()
        return self._step_state.named(sums), math.sqrt(square)


def _slices(kind: Kind, name: str, parameter: Tensor, tensor: Tensor) -> Iterator[TensorSlice]:
    """This process's share of a parameter's weights or moments, if it has any."""
    share = local(tensor.detach())
    if share.numel():
        yield TensorSlice(kind, name, local_start(parameter), share, is_whole=share.numel() == parameter.numel())


def _fill(slices: Iterable[TensorSlice], source: TensorSource) -> None:
    for part in slices:
        flat = source.flat(part.kind, part.name, part.start, part.start + part.tensor.numel())
        part.tensor.copy_(flat.view(part.tensor.shape))
