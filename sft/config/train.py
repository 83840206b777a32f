"""Settings of `sft train`, in groups: one group for each part of the trainer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from sft.config.engine import DeepSpeedConfig, Fp16Config, FsdpConfig, OptimizerConfig
from sft.config.fields import ABOVE_ZERO, AT_LEAST_0, AT_LEAST_1, SEED, PathText, resume_fixed
from sft.config.model import ActivationCheckpointing, Device, InitConfig, LoraConfig, Precision


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves, and which checkpoints it keeps."""

    every_steps: Annotated[int, AT_LEAST_1] = 100
    """Steps between checkpoints; one is always saved at the end and on a stop."""
    keep_last: Annotated[int, Interval(ge=2)] = 3
    """Newest checkpoints to keep; at least 2, so that a damaged one has a predecessor."""
    keep_best: Annotated[int, AT_LEAST_0] = 1
    """Checkpoints with the lowest held-out loss to keep besides; only those saved when it was measured can be."""
    keep_every_steps: Annotated[int, AT_LEAST_0] = 0
    """Checkpoints of every so many steps to keep for good; 0 keeps none."""
    async_save: bool = True
    """Write checkpoints while training continues, which takes a copy of weights and moments in memory."""


@dataclass(frozen=True)
class EvaluationConfig:
    """When a run measures its held-out loss."""

    every_steps: Annotated[int, AT_LEAST_0] = 0
    """Steps between held-out loss measurements; 0 measures none while training."""
    at_start: bool = False
    """Measure before the first step too, if any measurement is made."""
    max_packs: Annotated[int, AT_LEAST_1] = 64
    """Packed validation sequences per measurement while training."""


@dataclass(frozen=True)
class HealthConfig:
    """Checks before the first step, spike detection, and conditions that end a run."""

    numerics_gate: bool = True
    """Before the first step, prove on one pack that attention kernel and precision compute what they should."""
    max_bad_steps: Annotated[int, AT_LEAST_1] = 3
    """Consecutive non-finite steps (fp16: at the smallest loss scale) that end the run with code 70."""
    max_loss: Annotated[float, ABOVE_ZERO] | None = None
    """A step's loss above this ends the run with code 70 before it can be saved; null sets no limit."""
    spike_window: Annotated[int, AT_LEAST_0] = 128
    """Steps whose losses a new loss is compared with; 0 looks for no spikes."""
    spike_sigmas: Annotated[float, ABOVE_ZERO] = 6.0
    """A loss this many standard deviations above their mean, and half above it, is recorded as a spike."""


@dataclass(frozen=True)
class HangConfig:
    """How long a process may make no progress."""

    timeout_s: Annotated[float, AT_LEAST_0] = 120.0
    """Seconds without progress (or 5 median steps, if longer) after which a process leaves its stacks; 0 is never.

    After twice that it ends with code 71."""
    first_step_timeout_s: Annotated[float, AT_LEAST_0] = 1800.0
    """The same for the first step and for loading, measuring and saving; 0 is never."""


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of a run wait for each other."""

    timeout_s: Annotated[float, ABOVE_ZERO] = 1800.0
    """Seconds to wait for the other processes of the run, at its start and in every exchange."""


@dataclass(frozen=True)
class ProfilerConfig:
    """Steps whose time is recorded in detail."""

    steps: Annotated[int, AT_LEAST_0] = 0
    """Steps whose time to record in detail into the run folder's profile/; it slows them down. 0 records none."""
    start_step: Annotated[int, AT_LEAST_1] = 10
    """First step to record, counted from 1; the very first ones are not typical."""


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; metrics.jsonl is written in any case."""

    enabled: bool = False
    """Send metrics to wandb (needs the extra `wandb`)."""
    project: str = "sft"
    """Project to log to."""
    mode: Literal["online", "offline"] = "offline"
    """`offline` writes files for a later `wandb sync`; so does `online` where the server cannot be reached."""


@dataclass(frozen=True)
class TrainConfig:
    """`sft train`: shards and weights to checkpoints."""

    FORMERLY: ClassVar[Mapping[str, str]] = {
        "save_every_steps": "checkpoint.every_steps",
        "keep_checkpoints": "checkpoint.keep_last",
        "keep_best": "checkpoint.keep_best",
        "keep_every_steps": "checkpoint.keep_every_steps",
        "async_save": "checkpoint.async_save",
        "eval_every_steps": "evaluation.every_steps",
        "eval_at_start": "evaluation.at_start",
        "eval_max_packs": "evaluation.max_packs",
        "numerics_gate": "health.numerics_gate",
        "max_bad_steps": "health.max_bad_steps",
        "max_loss": "health.max_loss",
        "spike_window": "health.spike_window",
        "spike_sigmas": "health.spike_sigmas",
        "hang_timeout_s": "hang.timeout_s",
        "first_step_timeout_s": "hang.first_step_timeout_s",
        "peer_timeout_s": "distributed.timeout_s",
        "fsdp_shard_size": "fsdp.shard_size",
        "fp16_initial_scale_power": "fp16.initial_scale_power",
        "fp16_scale_window": "fp16.scale_window",
        "profile_steps": "profiler.steps",
        "profile_start_step": "profiler.start_step",
    }
    """Former names of keys → their names today."""

    shards: PathText
    """Folder made by `sft build`."""
    model: InitConfig
    """The weights to start from."""
    out: PathText
    """Run folder; if it holds a run already, training continues from its newest checkpoint."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and schedule."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters to train instead of the weights; none by default."""
    batch_packs: Annotated[int, AT_LEAST_1] = resume_fixed(default=256)
    """Packed sequences per optimizer step, over all ranks (card: 256 for 3B, 128 for 7B)."""
    micro_batch_packs: Annotated[int, AT_LEAST_1] = 1
    """Packed sequences per forward pass; gradients accumulate until batch_packs are done."""
    epochs: Annotated[float, ABOVE_ZERO] = resume_fixed(default=1.0)
    """Passes over the training split; the card is silent: the warm-up lengths fit one epoch."""
    max_steps: Annotated[int, AT_LEAST_1] | None = resume_fixed(default=None)
    """End after this many optimizer steps, even if epochs are left; the schedule follows."""
    seed: Annotated[int, SEED] = resume_fixed(default=0)
    """Seeds order and fresh weights."""
    neftune_alpha: Annotated[float, AT_LEAST_0] = resume_fixed(default=0.0)
    """Strength of the noise on input embeddings while training (NEFTune; its paper takes 5 to 15); 0 is none."""
    precision: Precision = resume_fixed(default="fp16")
    """Arithmetic of forward and backward; weights, gradients and optimizer state stay fp32."""
    fp16: Fp16Config = field(default_factory=Fp16Config)
    """Loss scale of precision=fp16."""
    engine: Literal["torch", "deepspeed"] = "torch"
    """What runs the step: PyTorch with FSDP2, or DeepSpeed with ZeRO; it may change on a resume."""
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    """How engine=torch divides the model."""
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    """Settings of engine=deepspeed."""
    device: Device = "auto"
    """`auto` takes CUDA if there is one."""
    activation_checkpointing: ActivationCheckpointing = field(
        default="none", metadata={"formerly": {"true": "full", "false": "none"}}
    )
    """What the backward pass computes again instead of keeping it: `cheap` norms and GELU, `full` whole blocks."""
    compile: bool = False
    """Let torch.compile fuse all but attention; the first step waits for it, and results round a bit differently."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving, and what is kept."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Held-out loss while training."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Checks before the first step, spikes, and conditions that end the run."""
    hang: HangConfig = field(default_factory=HangConfig)
    """When a process counts as stuck."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Waiting for the other processes."""
    stop_margin_s: Annotated[float, AT_LEAST_0] = 300.0
    """Seconds before the job's end (SLURM_JOB_END_TIME) at which to save and stop."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run folder (needs the extra `tensorboard`)."""
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    """Steps to record in detail."""

    def contradictions(self) -> Iterator[str]:
        """Batches that do not divide, and settings that only engine=torch supports."""
        if self.batch_packs % max(1, self.micro_batch_packs):
            yield f"batch_packs={self.batch_packs}: not a multiple of micro_batch_packs={self.micro_batch_packs}"
        if self.engine == "deepspeed" and self.lora.rank:
            yield f"lora.rank={self.lora.rank}: only with engine=torch"
        if self.engine == "deepspeed" and self.compile:
            yield "compile=true: only with engine=torch"
