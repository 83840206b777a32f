"""DeepSpeed: ZeRO divides optimizer state, gradients and weights among the processes.

The arithmetic is that of the torch engine: fp32 weights, gradients and moments, our autocast, our loss scale, PyTorch's
AdamW. DeepSpeed divides them, reduces gradients and gathers weights. Its checkpoints are not used.

Shape letters: S supervised tokens of a batch.
"""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.utils import get_total_norm

from sft.config.train import TrainConfig
from sft.data.batches.batch import Batch
from sft.errors import ConfigError
from sft.model.objectives.base import LOSS, Objective
from sft.train.distributed.errors import as_peer_errors
from sft.train.engine.base import MOMENTS, StepResult, TensorSlice, TensorSource
from sft.train.engine.deepspeed.config import deepspeed_json
from sft.train.engine.deepspeed.zero_layout import owned, shares, spread
from sft.train.engine.forward import measure, named_sums
from sft.train.engine.optimizer import adamw, saved_bytes, set_learning_rate, unscale_and_clip_
from sft.train.engine.precision import autocast
from sft.train.engine.step_state import StepState

OLDEST_VERSION = (0, 19, 8)
"""Older versions update fp32 weights with gradients that are NaN or Inf."""


class DeepSpeedEngine:
    """AdamW on fp32 weights that DeepSpeed divides, forward and backward in the configured precision."""

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        """Allocate memory for a model on the meta device; `load` or `restore` fills it."""
        self.model, self._config, self._device = objective.model, config, device
        self.checkpoint_bytes = saved_bytes(self.model)
        self._step_state = StepState(config, objective.names, device)
        deepspeed = _connected_deepspeed(device)
        if any(parameter.is_meta for parameter in objective.parameters()):
            objective.to_empty(device=device)
        if config.deepspeed.zero_stage == 3:
            # The loss uses the head's weight outside of the head's own module, where DeepSpeed would not gather it.
            deepspeed.zero.register_external_parameter(objective, self.model.head_weight)
        with as_peer_errors():
            self._engine, *_ = deepspeed.initialize(
                model=objective,
                optimizer=adamw(self.model, config.optimizer),
                config=deepspeed_json(config, device),
            )
        self._optimizer: torch.optim.Optimizer = self._engine.basic_optimizer
        self.is_shared = config.deepspeed.zero_stage == 3
        self._zero = self._engine.optimizer if config.deepspeed.zero_stage else None
        self._shares = list(shares(self.model, self._zero))

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic that the run computes in."""
        return autocast(self._device, self._config.precision)

    def forward_backward(self, batch: Batch, num_supervised: int, *, is_last: bool) -> None:
        """Add a micro-batch's share to the gradient of the step's mean loss, and to the objective's sums.

        From stage 2 on every micro-batch reduces gradients over the processes: none keeps those of all parameters.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed divides by the number of processes, which our mean over tokens must not contain.
        factor = dist.get_world_size() / num_supervised
        if self._zero is None:
            factor *= self._step_state.gradient_scale
        else:
            self._zero.override_loss_scale(self._step_state.gradient_scale)  # multiplies here, divides in the step
        width, alpha = self.model.config.hidden_size, self._config.neftune_alpha
        with as_peer_errors():
            with self.autocast():
                sums = named_sums(self._engine, batch, self._device, noise_alpha=alpha, width=width)
            # If the loss is not finite, neither is its gradient: the norm alone shows whether a step is good.
            loss = sums[LOSS]
            self._engine.backward(loss * (factor + 0 * loss.detach()), scale_wrt_gas=False)
        self._step_state.add(sums)

    def measure(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Loss of each supervised token, and whether it was the most likely."""
        with as_peer_errors():
            return measure(self._engine.module, self._device, self.autocast(), batch)

    def step(self, lr: float) -> StepResult:
        """Clip, update the weights if everything is finite on every process, and reset the gradient."""
        set_learning_rate(self._optimizer, lr)
        sums_M = self._step_state.sums_M()
        with as_peer_errors():
            dist.all_reduce(sums_M)
            grad_norm = self._step_of_all() if self._zero is None else self._step_of_shares()
        sums = self._step_state.named(sums_M.tolist())
        return self._step_state.finish(sums, grad_norm, is_finite=math.isfinite(grad_norm))

    @property
    def share(self) -> int:
        """The number of this process's share of the weights: before stage 3 every process has all of them."""
        return dist.get_rank() if self.is_shared else 0

    def slices(self) -> Iterator[TensorSlice]:
        """The slices that this process saves."""
        for share in owned(self._shares, self._zero):
            yield share.slice_of("weight", share.holder.detach())
            for kind in MOMENTS if self._step_state.num_updates else ():
                yield share.slice_of(kind, self._optimizer.state[share.holder][kind])

    def state(self) -> dict[str, Any]:
        """The number of updates and the loss scale."""
        return self._step_state.state()

    def load(self, source: TensorSource) -> None:
        """Load the weights to start from."""
        for share in self._shares:
            share.fill("weight", share.holder.detach(), source)
        with as_peer_errors():
            spread(self._zero)

    def restore(self, source: TensorSource, state: dict[str, Any]) -> None:
        """Resume from a checkpoint of any engine."""
        self.load(source)
        self._step_state.restore(state)
        num_updates = self._step_state.num_updates
        self._optimizer.state.clear()
        for share in self._shares if num_updates else ():
            states = self._optimizer.state[share.holder]
            if not states:
                states["step"] = torch.tensor(float(num_updates), device=share.holder.device)
                states.update({kind: torch.zeros_like(share.holder, requires_grad=False) for kind in MOMENTS})
            for kind in MOMENTS:
                share.fill(kind, states[kind], source)

    def _step_of_shares(self) -> float:
        """DeepSpeed's own step, skipped if the norm over all processes is not finite; returns the norm."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _step_of_all(self) -> float:
        """A step of stage 0, for which DeepSpeed has no such check; returns the norm."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        scale = self._step_state.gradient_scale
        grad_norm = get_total_norm(gradients).item() / scale
        if math.isfinite(grad_norm):
            unscale_and_clip_(gradients, scale, grad_norm, self._config.optimizer.clip_norm)
            self._engine.step()
        self._engine.zero_grad()
        return grad_norm


def _connected_deepspeed(device: torch.device) -> Any:
    """The package, set up for this device, using the existing process group.

    Raises: ConfigError if it is not installed, or too old.
    """
    os.environ["DS_ACCELERATOR"] = device.type  # read once, when the package is imported
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # which DeepSpeed uses as the device number
    if device.type == "cpu":
        os.environ.setdefault("LOCAL_SIZE", "1")  # else DeepSpeed starts a program in every pass to count CPU sockets
    try:
        import deepspeed
    except ImportError as error:
        hint = "install the extra `deepspeed`, or set engine=torch"
        raise ConfigError(f"engine=deepspeed: {error}", hint=hint) from error
    if (deepspeed.__version_major__, deepspeed.__version_minor__, deepspeed.__version_patch__) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ConfigError(f"engine=deepspeed: version {deepspeed.__version__}, expected {oldest} or newer")
    # None of DeepSpeed's compiled ops is needed. Without this line it looks for compilers, and builds one op.
    deepspeed.ops.__compatible_ops__ = {}
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
