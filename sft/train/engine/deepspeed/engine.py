"""DeepSpeed: ZeRO divides optimizer state, gradients and weights among the processes.

Numbers are made as in the torch engine: fp32 weights, gradients and moments, our autocast, our loss scale, PyTorch's
AdamW. What DeepSpeed does is to divide them, to add up gradients and to gather weights. Its checkpoints are not used.

T = tokens of the micro-batch, S = supervised ones among them.
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
from torch import Tensor
from torch.nn.utils import get_total_norm

from sft.config.train import TrainConfig
from sft.data.batches.batch import Batch
from sft.errors import ConfigError
from sft.model.attention import Documents
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.neox.model import NeoX
from sft.model.objective import Objective
from sft.train.distributed.ranks import as_peer_errors
from sft.train.engine.base import MOMENTS, StepResult, TensorSlice, TensorSource
from sft.train.engine.deepspeed.config import deepspeed_json
from sft.train.engine.deepspeed.zero_layout import owned, shares, spread
from sft.train.engine.loss_scale import LossScale
from sft.train.engine.optimizer import parameter_groups
from sft.train.engine.precision import autocast
from sft.train.held_out_loss import measure

OLDEST_VERSION = (0, 19, 8)
"""Older ones update fp32 weights with gradients that are no numbers."""
COPIES_SAVED = 3
"""The weights and AdamW's two moments."""


class DeepSpeedEngine:
    """AdamW on fp32 weights that DeepSpeed divides, forward and backward in the configured precision."""

    def __init__(self, model: NeoX, config: TrainConfig, device: torch.device) -> None:
        """A model on the meta device gets its memory here; `load` or `restore` fill it then."""
        self.model, self._config, self._device = model, config, device
        self.checkpoint_bytes = COPIES_SAVED * sum(parameter.nbytes for parameter in model.parameters())
        self._loss_scale = LossScale(config)
        self._num_updates = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        deepspeed = _connected_deepspeed(device)
        objective = Objective(model)
        if any(parameter.is_meta for parameter in model.parameters()):
            objective.to_empty(device=device)
        if config.deepspeed.zero_stage == 3:
            # The loss uses the head's weight outside of the head's own module, where nobody would gather it.
            deepspeed.zero.register_external_parameter(objective, model.head_weight)
        with as_peer_errors():
            self._engine, *_ = deepspeed.initialize(
                model=objective, optimizer=_adamw(model, config), config=deepspeed_json(config, device)
            )
        self._optimizer: torch.optim.Optimizer = self._engine.basic_optimizer
        self.is_shared = config.deepspeed.zero_stage == 3
        self._zero = self._engine.optimizer if config.deepspeed.zero_stage else None
        self._shares = list(shares(model, self._zero))

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic that the run computes in."""
        return autocast(self._device, self._config.precision)

    def forward_backward(self, batch: Batch, num_supervised: int, *, is_last: bool) -> None:
        """Add a micro-batch's share to the gradient of the step's mean loss.

        From stage 2 on every micro-batch adds up gradients over the processes: nobody keeps those of all parameters.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed divides by the number of processes, which is no part of our mean over tokens.
        factor = dist.get_world_size() / num_supervised
        if self._zero is None:
            factor *= self._gradient_scale
        else:
            self._zero.override_loss_scale(self._gradient_scale)  # multiplies here, divides in the step
        with as_peer_errors():
            with self.autocast():
                width = self.model.config.hidden_size
                noise = EmbeddingNoise.for_batch(batch, self._config.neftune_alpha, width, self._device)
                loss = self._engine(*self._sent(batch), noise=noise)
            # If the loss is no number, its gradient becomes none: the norm alone tells whether a step is good.
            self._engine.backward(loss * (factor + 0 * loss.detach()), scale_wrt_gas=False)
        self._loss_sum += loss.detach()

    def measure(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Loss of each supervised token, and whether it was the likeliest."""
        with as_peer_errors():
            return measure(self._engine.module, self._device, self.autocast(), batch)

    def step(self, lr: float) -> StepResult:
        """Clip, update the weights if everything is finite on every process, and forget the gradient."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        with as_peer_errors():
            dist.all_reduce(self._loss_sum)
            grad_norm = self._step_of_all() if self._zero is None else self._step_of_shares()
        loss_sum, scale, is_finite = self._loss_sum.item(), self._loss_scale.value, math.isfinite(grad_norm)
        self._num_updates += is_finite
        self._loss_scale.update(is_finite=is_finite)
        self._loss_sum.zero_()
        return StepResult(loss_sum, grad_norm, scale, is_skipped=not is_finite)

    @property
    def share(self) -> int:
        """Which share of the weights this process holds: before stage 3 everybody has all of them."""
        return dist.get_rank() if self.is_shared else 0

    def slices(self) -> Iterator[TensorSlice]:
        """What this process has to save."""
        for share in owned(self._shares, self._zero):
            yield share.piece("weight", share.holder.detach())
            for kind in MOMENTS if self._num_updates else ():
                yield share.piece(kind, self._optimizer.state[share.holder][kind])

    def state(self) -> dict[str, Any]:
        """The number of updates and the loss scale."""
        return {"num_updates": self._num_updates, "loss_scale": self._loss_scale.state()}

    def load(self, source: TensorSource) -> None:
        """Take the weights to start from."""
        for share in self._shares:
            share.fill("weight", share.holder.detach(), source)
        with as_peer_errors():
            spread(self._zero)

    def restore(self, source: TensorSource, state: dict[str, Any]) -> None:
        """Go on from what any engine has saved."""
        self.load(source)
        self._num_updates = state["num_updates"]
        self._loss_scale.restore(state["loss_scale"])
        self._optimizer.state.clear()
        for share in self._shares if self._num_updates else ():
            states = self._optimizer.state[share.holder]
            if not states:
                states["step"] = torch.tensor(float(self._num_updates), device=share.holder.device)
                states.update({kind: torch.zeros_like(share.holder, requires_grad=False) for kind in MOMENTS})
            for kind in MOMENTS:
                share.fill(kind, states[kind], source)

    @property
    def _gradient_scale(self) -> float:
        """How many times too large gradients are until the step.

        Divided by the supervised tokens of a whole step, those of one token would be lost below the smallest fp16
        number.
        """
        return self._config.batch_packs * self._loss_scale.value

    def _step_of_shares(self) -> float:
        """DeepSpeed's own step, which is left out if the norm over all processes is not finite; returns the norm."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _step_of_all(self) -> float:
        """A step of stage 0, for which DeepSpeed has no such check; returns the norm."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        grad_norm = get_total_norm(gradients).item() / self._gradient_scale
        if math.isfinite(grad_norm):
            limit = self._config.optimizer.clip_norm
            clip = min(1.0, limit / grad_norm) if limit and grad_norm else 1.0
            torch._foreach_mul_(gradients, clip / self._gradient_scale)
            self._engine.step()
        self._engine.zero_grad()
        return grad_norm

    def _sent(self, batch: Batch) -> tuple[Tensor, Documents, Tensor]:
        input_ids_T, targets_T = (
            torch.from_numpy(array_T).to(self._device) for array_T in (batch.input_ids_T, batch.targets_T)
        )
        return input_ids_T, Documents.of(batch.doc_lengths, self._device), targets_T


def _adamw(model: NeoX, config: TrainConfig) -> torch.optim.AdamW:
    """PyTorch's own AdamW: fused on the CPU too, so that offloading has nothing to compile."""
    settings = config.optimizer
    return torch.optim.AdamW(
        parameter_groups(model, settings),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def _connected_deepspeed(device: torch.device) -> Any:
    """The package, set up for this device, using the connection among the processes that there is.

    Raises: ConfigError if it is not installed, or too old.
    """
    os.environ["DS_ACCELERATOR"] = device.type  # read once, when the package is imported
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # which DeepSpeed takes for the number of the device
    if device.type == "cpu":
        os.environ.setdefault("LOCAL_SIZE", "1")  # or DeepSpeed starts a program in every pass to count CPU sockets
    try:
        import deepspeed
    except ImportError as error:
        hint = "install the extra `deepspeed`, or set engine=torch"
        raise ConfigError(f"engine=deepspeed: {error}", hint=hint) from error
    if (deepspeed.__version_major__, deepspeed.__version_minor__, deepspeed.__version_patch__) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise ConfigError(f"engine=deepspeed: version {deepspeed.__version__}, expected {oldest} or newer")
    # Nothing that DeepSpeed would compile is needed here. Otherwise it looks for compilers, and makes one such thing.
    deepspeed.ops.__compatible_ops__ = {}
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed
