"""Settings of the arithmetic of a step: AdamW, half precision, and how the processes divide the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from sft.config.fields import ABOVE_ZERO, AT_LEAST_0, AT_LEAST_1, SHARE, resume_fixed

BETA = Interval(ge=0, lt=1)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: Annotated[float, ABOVE_ZERO] = resume_fixed(default=2e-5)
    """Peak learning rate (card)."""
    betas: tuple[Annotated[float, BETA], Annotated[float, BETA]] = resume_fixed(default=(0.9, 0.99))
    """Adam's decay rates (card)."""
    eps: Annotated[float, ABOVE_ZERO] = resume_fixed(default=1e-8)
    """Adam's epsilon; the card is silent: the value of PyTorch and of Alpaca's procedure."""
    weight_decay: Annotated[float, AT_LEAST_0] = resume_fixed(default=0.01)
    """Decoupled weight decay on all parameters (card)."""
    decay_biases_and_norms: bool = resume_fixed(default=True)
    """False leaves biases and layer norms without weight decay; the card decays all."""
    clip_norm: Annotated[float, AT_LEAST_0] = resume_fixed(default=1.0)
    """Gradient norm limit; the card is silent: the base model's pre-training value. 0 switches it off."""
    warmup_steps: Annotated[int, AT_LEAST_0] = resume_fixed(default=50)
    """Steps of linear warm-up (card: 50 for 3B, 100 for 7B)."""
    schedule: Literal["cosine", "linear", "constant"] = resume_fixed(default="cosine")
    """Shape after warm-up; the card is silent: Alpaca's procedure, which it follows, decays by cosine."""
    min_lr_ratio: Annotated[float, SHARE] = resume_fixed(default=0.0)
    """Learning rate at the end, as a share of the peak; Alpaca's procedure ends at 0."""

    def contradictions(self) -> Iterator[str]:
        """A minimum for a rate that never falls."""
        if self.min_lr_ratio and self.schedule == "constant":
            yield f"min_lr_ratio={self.min_lr_ratio}: a constant schedule never falls; leave it out"


@dataclass(frozen=True)
class Fp16Config:
    """The dynamic loss scale of precision=fp16."""

    initial_scale_power: Annotated[int, Interval(ge=0, le=24)] = resume_fixed(default=12)
    """Loss scale at the start is 2 to this power (value of the base model's pre-training)."""
    scale_window: Annotated[int, AT_LEAST_1] = resume_fixed(default=1000)
    """Steps without overflow before the loss scale doubles (value of the base model's pre-training)."""


@dataclass(frozen=True)
class FsdpConfig:
    """How engine=torch divides the model among several processes."""

    shard_size: Annotated[int, AT_LEAST_1] | None = None
    """Processes that share one copy of the model, such as those of a node; null shares it among all."""


@dataclass(frozen=True)
class DeepSpeedConfig:
    """Settings of engine=deepspeed only; DeepSpeed's own settings are derived from these and all others."""

    zero_stage: Annotated[int, Interval(ge=0, le=3)] = 1
    """What the processes divide among them: 1 optimizer state, 2 gradients too, 3 weights too; 0 nothing."""
    offload_optimizer: bool = False
    """Keep optimizer state in the CPU's memory and update there (from stage 1 on): slower, but larger models fit."""

    def contradictions(self) -> Iterator[str]:
        """Offloading in stage 0."""
        if self.offload_optimizer and self.zero_stage == 0:
            yield "offload_optimizer: stage 0 has nothing to offload, set zero_stage to 1, 2 or 3"
