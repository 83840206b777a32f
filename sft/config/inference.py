"""Settings of what is done with a trained model: evaluation, chat and export."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from sft.config.fields import AT_LEAST_0, AT_LEAST_1, PathText
from sft.config.model import Device, Precision


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are produced."""

    max_new_tokens: Annotated[int, AT_LEAST_1] = 128
    """Longest answer."""
    temperature: Annotated[float, AT_LEAST_0] = 0.0
    """0 always takes the likeliest token; the card's snippet samples with 0.7."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with this total probability."""
    seed: Annotated[int, AT_LEAST_0] = 0
    """Seeds sampling."""


@dataclass(frozen=True)
class EvalConfig:
    """`sft eval`: a checkpoint's held-out loss per source and its answers to fixed prompts."""

    shards: PathText | None = None
    """Folder made by `sft build`; null takes the one that the checkpoint was trained on."""
    split: Literal["valid", "train"] = "valid"
    """Which packs to measure."""
    max_packs: Annotated[int, AT_LEAST_1] | None = None
    """Measure at most this many packs, picked as if at random but always the same; null measures all."""
    micro_batch_packs: Annotated[int, AT_LEAST_1] = 1
    """Packed sequences per forward pass."""
    prompts: tuple[str, ...] = (
        "What's your mood today?",
        "Write a two-line poem about the sea.",
        "What is the capital of France?",
        "Explain in one sentence why the sky is blue.",
    )
    """Questions that every evaluated checkpoint answers."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(max_new_tokens=64))
    """How the answers are produced."""
    system: str | None = None
    """System text of the prompts; null takes the card's prompt."""
    device: Device = "auto"
    """`auto` takes CUDA if there is one."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass."""
    out: PathText | None = None
    """Result file; null writes eval.json beside the checkpoint's run."""


@dataclass(frozen=True)
class ChatConfig:
    """`sft chat`: talk to a checkpoint."""

    system: str | None = None
    """System text; null takes the card's prompt."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(max_new_tokens=256, temperature=0.7))
    """How answers are produced."""
    device: Device = "auto"
    """`auto` takes CUDA if there is one."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass."""


@dataclass(frozen=True)
class ExportConfig:
    """`sft export`: a checkpoint to a Hugging Face folder."""

    dtype: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Number format of the exported weights."""
    system: str | None = None
    """System text of the chat template when a chat names none; null takes the card's prompt."""
    max_shard_bytes: Annotated[int, AT_LEAST_1] = 5_000_000_000
    """Largest weight file."""
