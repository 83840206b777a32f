"""One process on one device, in plain PyTorch: the reference that every other engine is proven against.

T = tokens of the micro-batch.
"""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn.utils import get_total_norm

from sft.config import TrainConfig
from sft.data.loader import Batch
from sft.model.attention import Documents
from sft.model.huggingface import load_weights, write_folder
from sft.model.loss import supervised_loss_sum
from sft.model.neox import NeoX
from sft.train.engine.base import SMALLEST_SCALE, StepResult
from sft.train.precision import autocast

OPTIMIZER = "optimizer.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
COPIES_SAVED = 3
"""The weights and AdamW's two moments."""


class TorchEngine:
    """AdamW on fp32 weights, forward and backward in the configured precision."""

    def __init__(self, model: NeoX, config: TrainConfig) -> None:
        self.model, self._config = model, config
        self._device = next(model.parameters()).device
        self._parameters = dict(model.named_parameters())
        optimizer = config.optimizer
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        self._scaler = GradScaler(
            self._device.type,
            init_scale=2.0**config.fp16_initial_scale_power,
            growth_interval=config.fp16_scale_window,
            enabled=config.precision == "fp16",
        )
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)

    @property
    def checkpoint_bytes(self) -> int:
        """About how much `save` writes."""
        return COPIES_SAVED * sum(parameter.nbytes for parameter in self._parameters.values())

    def autocast(self) -> AbstractContextManager[object]:
        """The arithmetic that the run computes in."""
        return autocast(self._device, self._config.precision)

    def forward_backward(self, batch: Batch, num_supervised: int) -> None:
        """Add a micro-batch's share to the gradient of the step's mean loss."""
        input_ids_T, targets_T = self._send(batch.input_ids_T), self._send(batch.targets_T)
        documents = Documents.of(batch.doc_lengths, self._device)
        with self.autocast():
            hidden_TD = self.model(input_ids_T, documents)
            loss = supervised_loss_sum(hidden_TD, self.model.head_weight, targets_T)
        # Gradients are kept batch_packs times too large until the step: divided by the supervised tokens of a whole
        # step, those of one token would be lost below the smallest fp16 number.
        self._scaler.scale(loss * (self._config.batch_packs / num_supervised)).backward()  # type: ignore[no-untyped-call]
        self._loss_sum += loss.detach()

    def step(self, lr: float) -> StepResult:
        """Clip, update the weights if everything is finite, and forget the gradient."""
        scale = self._scaler.get_scale()
        self._scaler.unscale_(self._optimizer)
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norm = get_total_norm(gradients) / self._config.batch_packs
        # The one moment of a step at which the CPU waits for the device.
        loss_sum, grad_norm = torch.stack((self._loss_sum, norm.double())).tolist()
        is_finite = math.isfinite(loss_sum) and math.isfinite(grad_norm)
        if is_finite:
            self._update(gradients, grad_norm, lr)
        self._scaler.update()
        if self._scaler.get_scale() < SMALLEST_SCALE:
            self._scaler.update(SMALLEST_SCALE)
        self._optimizer.zero_grad()
        self._loss_sum.zero_()
        return StepResult(loss_sum, grad_norm, scale, is_skipped=not is_finite)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the weights as a Hugging Face folder and AdamW's moments beside them; return the loss scale's state."""
        write_folder(self._parameters, self.model.config, folder, torch.float32, MAX_SHARD_BYTES)
        moments = self._optimizer.state_dict()["state"]
        tensors = {
            f"{name}.{key}": value.cpu().contiguous()
            for number, name in enumerate(self._parameters)
            for key, value in moments.get(number, {}).items()
        }
        save_file(tensors, folder / OPTIMIZER)
        (folder / OPTIMIZER).chmod(0o644)  # safetensors leaves its files readable by their owner only
        return {"loss_scale": self._scaler.state_dict()}

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Take over exactly what `save` wrote and returned."""
        load_weights(self.model, folder)
        numbers = {name: number for number, name in enumerate(self._parameters)}
        moments: dict[int, dict[str, Tensor]] = {}
        for place, value in load_file(folder / OPTIMIZER).items():
            name, _, key = place.rpartition(".")
            moments.setdefault(numbers[name], {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._scaler.load_state_dict(state["loss_scale"])

    def _update(self, gradients: list[Tensor], grad_norm: float, lr: float) -> None:
        limit = self._config.optimizer.clip_norm
        clip = min(1.0, limit / grad_norm) if limit and grad_norm else 1.0
        torch._foreach_mul_(gradients, clip / self._config.batch_packs)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    def _send(self, array_T: NDArray[Any]) -> Tensor:
        tensor_T = torch.from_numpy(array_T)
        if self._device.type != "cuda":
            return tensor_T
        # From pinned memory the copy does not wait for the kernels that are still queued.
        return tensor_T.pin_memory().to(self._device, non_blocking=True)
