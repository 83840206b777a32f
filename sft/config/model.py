"""The shape of a model, where its weights come from, and adapters beside them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from sft.config.fields import ABOVE_ZERO, AT_LEAST_0, AT_LEAST_1, PathText, resume_fixed

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
ActivationCheckpointing = Literal["none", "cheap", "full"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a GPT-NeoX model."""

    vocab_size: Annotated[int, AT_LEAST_1]
    """Rows of the embedding and of the head; may exceed the tokenizer's length, never fall short of it."""
    hidden_size: Annotated[int, AT_LEAST_1]
    """Width of the residual stream."""
    num_layers: Annotated[int, AT_LEAST_1]
    """Number of transformer blocks."""
    num_heads: Annotated[int, AT_LEAST_1]
    """Attention heads per block."""
    intermediate_size: Annotated[int, AT_LEAST_1]
    """Width of the MLP's inner layer."""
    max_positions: Annotated[int, AT_LEAST_1] = 4096
    """Longest document, in tokens."""
    rotary_pct: float = 0.25
    """Share of each head's dimensions that is rotated."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the layer norms."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""

    def contradictions(self) -> Iterator[str]:
        """Heads that do not divide the width, and a rotation of half a pair."""
        if self.num_heads < 1 or self.hidden_size < 1:
            return
        if self.hidden_size % self.num_heads:
            yield f"hidden_size={self.hidden_size}: not divisible by num_heads={self.num_heads}"
        elif int(self.head_dim * self.rotary_pct) % 2:
            yield f"rotary_pct={self.rotary_pct}: rotates an odd number of the {self.head_dim} dimensions per head"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_dims(self) -> int:
        return int(self.head_dim * self.rotary_pct)


@dataclass(frozen=True)
class InitConfig:
    """Where the weights come from."""

    weights: PathText = resume_fixed()
    """Hugging Face GPT-NeoX folder to start from, or `scratch` for fresh random weights."""
    preset: str | None = resume_fixed(default=None)
    """Shape by name (stablelm_3b, stablelm_7b, small_cpu, tiny): needed for scratch, checked against a folder."""
    vocab_size: int | None = resume_fixed(default=None)
    """Replaces the preset's vocabulary size (scratch only), for another tokenizer."""

    def contradictions(self) -> Iterator[str]:
        """Settings that only fresh weights have, and those that they require."""
        if self.weights == "scratch" and self.preset is None:
            yield "weights=scratch: needs model.preset to know the shape"
        if self.weights != "scratch" and self.vocab_size is not None:
            yield "vocab_size: only with weights=scratch; a folder's own size is never changed"


LoraTarget = Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: train small matrices beside frozen weights instead of the weights."""

    rank: Annotated[int, AT_LEAST_0] = resume_fixed(default=0)
    """Width of the adapters; 0 trains all weights."""
    alpha: Annotated[float, ABOVE_ZERO] = resume_fixed(default=16.0)
    """The adapters' share of a layer's output is scaled by alpha / rank."""
    targets: tuple[LoraTarget, ...] = resume_fixed(default=get_args(LoraTarget))
    """Layers of each block that get an adapter; the first two are attention's, the others the MLP's."""

    def contradictions(self) -> Iterator[str]:
        """Layers named twice, or none."""
        if not self.targets or len(set(self.targets)) < len(self.targets):
            yield f"targets={list(self.targets)}: expected at least one layer, none of them twice"
