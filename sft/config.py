"""The one schema: every setting of every command, its type, its default and what it means.

Plain frozen dataclasses; `settings.py` fills them from YAML and `key=value`. A sentence stands under each field.
`problems()` lists what is out of range or contradictory, so that all mistakes are shown at once.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, get_args

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
ActivationCheckpointing = Literal["none", "cheap", "full"]


def _resume_fixed(**options: Any) -> Any:
    """A field that a resumed run may not change, because the result would no longer be the same run."""
    return field(metadata={"resume_fixed": True}, **options)


def _at_least(config: Any, low: float, *names: str) -> Iterator[str]:
    """A sentence for each of these settings that is not a finite number of at least `low`."""
    for name in names:
        if not low <= getattr(config, name) < math.inf:
            yield f"{name}={getattr(config, name)}: expected at least {low}"


def _above_zero(config: Any, *names: str) -> Iterator[str]:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            yield f"{name}={getattr(config, name)}: expected above 0"


def _share(config: Any, *names: str) -> Iterator[str]:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            yield f"{name}={getattr(config, name)}: expected a share between 0 and 1"


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class SourceConfig:
    """One source: its recipe (data_recipes/<name>/recipe.yaml) and what the mixture says about it."""

    title: str
    """Name of the data set as people know it."""
    hub_id: str
    """Where it is published: owner/name on the Hugging Face hub."""
    files: tuple[str, ...]
    """Glob patterns below sources_dir that find its raw files; .gz and .zst are added by themselves."""
    licence: str
    """SPDX identifier or name of its licence."""
    citation: str
    """How its authors ask to be cited, in one line."""
    system: str
    """System text of its conversations; `card` is the prompt of the StableLM-Tuned-Alpha card."""
    commercial: bool = False
    """True if the licence allows commercial use."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What happens to a single exchange longer than seq_len."""
    revision: str = "main"
    """Branch, tag or commit of the hub repository that `sft fetch` downloads."""
    hub_files: tuple[str, ...] = ()
    """Glob patterns of the files of the hub repository that `sft fetch` downloads."""
    switches: dict[str, bool] = field(default_factory=dict)
    """Named variants of the recipe, keyword arguments of its `convert`; its README explains them."""
    repair: bool = True
    """Undo mojibake and remove invisible control characters."""
    language: str | None = None
    """Keep conversations in this language only (ISO 639-1, such as en); null keeps all."""
    min_answer_characters: int = 0
    """Drop conversations whose answers together are shorter."""
    max_characters: int | None = None
    """Drop conversations whose turns together are longer; null keeps all."""
    refusals: Literal["keep", "drop"] = "keep"
    """What happens to conversations in which the assistant refuses or speaks of itself as a language model."""
    personal_data: Literal["keep", "redact"] = "keep"
    """`redact` replaces e-mail and IP addresses, telephone, card and account numbers by their kind, as in <email>."""
    duplicates: Literal["keep", "drop"] = "drop"
    """What happens to a conversation whose turns are those of an earlier one, in this source or in one before it."""
    near_duplicates: float | None = None
    """Drop conversations that resemble an earlier one at least this much (such as 0.8); null keeps all.

    Similarity is the share of word 5-grams in common, of the whole text or of the answers alone, whichever is less."""
    decontaminate: bool = True
    """Drop conversations that share text with the mixture's evaluation_files, if it names any."""
    max_drop_share: float = 0.5
    """More dropped rows than this share stop the build: the recipe no longer fits its source."""
    max_damaged_share: float = 0.001
    """More unreadable rows (bad JSON, bad UTF-8, wrong columns) than this share stop the build."""
    enabled: bool = True
    """False leaves the source out of the mixture."""
    max_rows: int | None = None
    """Read at most this many raw rows, in file order; null reads all."""
    weight: float = 1.0
    """Share of its conversations to use, above 0 and up to 1, chosen by a hash of their text."""
    num_conversations: int | None = None
    """Train on exactly this many of its conversations, chosen by a hash of their text; null takes all."""
    epochs: float = 1.0
    """How often each training conversation is packed; of 2.5, half of them are packed three times."""

    def problems(self) -> Iterator[str]:
        if not 0 < self.weight <= 1:
            yield f"weight={self.weight}: expected a share above 0 and up to 1"
        for name in ("max_rows", "num_conversations", "max_characters"):
            if getattr(self, name) is not None:
                yield from _at_least(self, 1, name)
        if not 1 <= self.epochs <= 100:
            yield f"epochs={self.epochs}: expected 1 to 100; for less than one, set weight"
        if self.near_duplicates is not None and not 0.5 <= self.near_duplicates <= 1:
            yield f"near_duplicates={self.near_duplicates}: expected a similarity from 0.5 to 1"
        if self.language is not None and not re.fullmatch("[a-z]{2}", self.language):
            yield f"language={self.language!r}: expected an ISO 639-1 code, such as en"
        yield from _at_least(self, 0, "min_answer_characters")
        if not self.files:
            yield "files: expected at least one pattern"
        for pattern in self.files:
            if not pattern or PurePath(pattern).is_absolute():
                yield f"files={pattern!r}: expected a pattern below sources_dir"
        yield from _share(self, "max_drop_share", "max_damaged_share")


@dataclass(frozen=True)
class BuildConfig:
    """`sft build`: raw files to packed shards."""

    sources: dict[str, SourceConfig]
    """The sources of the mixture by name."""
    sources_dir: str
    """Folder that holds the raw files."""
    tokenizer: str
    """Path of a tokenizer.json (or of a folder that holds one) in the form of GPT-NeoX-20B's."""
    out: str
    """Folder to publish; it must not exist yet, or hold this very build."""
    name: str = "mixture"
    """Name of the mixture, for the data-set card."""
    seq_len: int = 4096
    """Tokens per packed sequence."""
    valid_share: float = 0.01
    """Share of each source's conversations held out for validation (at least one).

    A hash of their first question chooses them; weights, numbers, epochs and rows that open otherwise do not."""
    valid_conversations: int | None = None
    """Hold out this many conversations of each source instead of a share."""
    seed: int = 0
    """Chooses the held-out conversations."""
    system: Literal["recipe", "card"] = "recipe"
    """`card` puts the card's system prompt on every source."""
    format: Literal["stablelm"] = "stablelm"
    """How conversations are written: what stands between their texts, and which system text is `card`."""
    supervise: Literal["assistant", "all"] = "assistant"
    """Which tokens carry loss; `all` is the as-released variant."""
    end_token: bool = True
    """End every document with <|endoftext|>; the as-released text has none."""
    packs_per_shard: int = 8192
    """Packed sequences per shard file (8192 × 4096 tokens are about 100 MB)."""
    evaluation_files: tuple[str, ...] = ()
    """Text, JSON or JSONL files of evaluation questions; conversations that share text with them are dropped."""
    evaluation_ngram_words: int = 13
    """How many successive words in common make a conversation contaminated."""
    max_row_bytes: int = 4_000_000
    """Longer rows are dropped unread, so that a damaged file cannot fill the memory."""
    workers: int = 0
    """Worker processes; 0 takes all cores. The result does not depend on it."""
    chunk_timeout_s: float = 600.0
    """A worker process that is stuck in a chunk (some thousand rows) for longer shows where and ends the build."""
    tokenizer_backend: Literal["tokenizers", "fastokens"] = "tokenizers"
    """What splits text into ids: the reference library, or a faster one (extra `fast`) that is checked against it."""
    tokenizer_check_share: float = 0.001
    """Share of the texts whose ids from a fast backend are compared with the reference's; 1 compares all."""

    def problems(self) -> Iterator[str]:
        if not any(source.enabled for source in self.sources.values()):
            yield "sources: every source is switched off"
        if not 16 <= self.seq_len <= 65535:
            yield f"seq_len={self.seq_len}: expected 16 to 65535"
        if not 0 <= self.valid_share < 0.5:
            yield f"valid_share={self.valid_share}: expected 0 up to 0.5"
        if self.valid_conversations is not None:
            yield from _at_least(self, 1, "valid_conversations")
        elif 0 <= self.valid_share < 0.5:
            for name, source in self.sources.items():
                if 0 < source.weight <= self.valid_share:
                    yield f"sources.{name}.weight={source.weight}: expected more than valid_share={self.valid_share}"
        if not 0 <= self.seed < 1 << 63:
            yield f"seed={self.seed}: expected 0 up to 2^63"
        yield from _share(self, "tokenizer_check_share")
        yield from _above_zero(self, "chunk_timeout_s")
        yield from _at_least(self, 1, "packs_per_shard", "max_row_bytes")
        yield from _at_least(self, 5, "evaluation_ngram_words")
        yield from _at_least(self, 0, "workers")


# ------------------------------------------------------------------------------------------------ model


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a GPT-NeoX model."""

    vocab_size: int
    """Rows of the embedding and of the head; may exceed the tokenizer's length, never fall short of it."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads per block."""
    intermediate_size: int
    """Width of the MLP's inner layer."""
    max_positions: int = 4096
    """Longest document, in tokens."""
    rotary_pct: float = 0.25
    """Share of each head's dimensions that is rotated."""
    rotary_base: float = 10000.0
    """Base of the rotary frequencies."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the layer norms."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""

    def problems(self) -> Iterator[str]:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")
        yield from _at_least(self, 1, *sizes)
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


# ------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class InitConfig:
    """Where the weights come from."""

    weights: str = _resume_fixed()
    """Hugging Face GPT-NeoX folder to start from, or `scratch` for fresh random weights."""
    preset: str | None = _resume_fixed(default=None)
    """Shape by name (stablelm_3b, stablelm_7b, small_cpu, tiny): needed for scratch, checked against a folder."""
    vocab_size: int | None = _resume_fixed(default=None)
    """Replaces the preset's vocabulary size (scratch only), for another tokenizer."""

    def problems(self) -> Iterator[str]:
        if self.weights == "scratch" and self.preset is None:
            yield "weights=scratch: needs model.preset to know the shape"
        if self.weights != "scratch" and self.vocab_size is not None:
            yield "vocab_size: only with weights=scratch; a folder's own size is never changed"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: float = _resume_fixed(default=2e-5)
    """Peak learning rate (card)."""
    betas: tuple[float, float] = _resume_fixed(default=(0.9, 0.99))
    """Adam's decay rates (card)."""
    eps: float = _resume_fixed(default=1e-8)
    """Adam's epsilon; the card is silent: the value of PyTorch and of Alpaca's procedure."""
    weight_decay: float = _resume_fixed(default=0.01)
    """Decoupled weight decay on all parameters (card)."""
    decay_biases_and_norms: bool = _resume_fixed(default=True)
    """False leaves biases and layer norms without weight decay; the card decays all."""
    clip_norm: float = _resume_fixed(default=1.0)
    """Gradient norm limit; the card is silent: the base model's pre-training value. 0 switches it off."""
    warmup_steps: int = _resume_fixed(default=50)
    """Steps of linear warm-up (card: 50 for 3B, 100 for 7B)."""
    schedule: Literal["cosine", "linear", "constant"] = _resume_fixed(default="cosine")
    """Shape after warm-up; the card is silent: Alpaca's procedure, which it follows, decays by cosine."""
    min_lr_ratio: float = _resume_fixed(default=0.0)
    """Learning rate at the end, as a share of the peak; Alpaca's procedure ends at 0."""

    def problems(self) -> Iterator[str]:
        yield from _above_zero(self, "lr", "eps")
        yield from _at_least(self, 0, "weight_decay", "clip_norm", "warmup_steps")
        yield from _share(self, "min_lr_ratio")
        if self.min_lr_ratio and self.schedule == "constant":
            yield f"min_lr_ratio={self.min_lr_ratio}: a constant schedule never falls; leave it out"
        for beta in self.betas:
            if not 0 <= beta < 1:
                yield f"betas={self.betas}: expected values from 0 up to 1"


LoraTarget = Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: train small matrices beside frozen weights instead of the weights."""

    rank: int = _resume_fixed(default=0)
    """Width of the adapters; 0 trains all weights."""
    alpha: float = _resume_fixed(default=16.0)
    """The adapters' share of a layer's output is scaled by alpha / rank."""
    targets: tuple[LoraTarget, ...] = _resume_fixed(default=get_args(LoraTarget))
    """Layers of each block that get an adapter; the first two are attention's, the others the MLP's."""

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 0, "rank")
        yield from _above_zero(self, "alpha")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            yield f"targets={list(self.targets)}: expected at least one layer, none of them twice"


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
class DeepSpeedConfig:
    """What engine=deepspeed is told besides; DeepSpeed's own settings are made from these and all others."""

    zero_stage: int = 1
    """What the processes divide among them: 1 optimizer state, 2 gradients too, 3 weights too; 0 nothing."""
    offload_optimizer: bool = False
    """Keep optimizer state in the CPU's memory and update there (from stage 1 on): slower, but larger models fit."""

    def problems(self) -> Iterator[str]:
        if not 0 <= self.zero_stage <= 3:
            yield f"zero_stage={self.zero_stage}: expected 0, 1, 2 or 3"
        if self.offload_optimizer and self.zero_stage == 0:
            yield "offload_optimizer: stage 0 has nothing to offload, set zero_stage to 1, 2 or 3"


@dataclass(frozen=True)
class TrainConfig:
    """`sft train`: shards and weights to checkpoints."""

    shards: str
    """Folder made by `sft build`."""
    model: InitConfig
    """The weights to start from."""
    out: str
    """Run folder; if it holds a run already, training goes on from its newest checkpoint."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and schedule."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters to train instead of the weights; none by default."""
    batch_packs: int = _resume_fixed(default=256)
    """Packed sequences per optimizer step, over all ranks (card: 256 for 3B, 128 for 7B)."""
    micro_batch_packs: int = 1
    """Packed sequences per forward pass; gradients accumulate until batch_packs are done."""
    epochs: float = _resume_fixed(default=1.0)
    """Passes over the training split; the card is silent: the warm-up lengths fit one epoch."""
    max_steps: int | None = _resume_fixed(default=None)
    """End after this many optimizer steps, even if epochs are left; the schedule follows."""
    seed: int = _resume_fixed(default=0)
    """Seeds order and fresh weights."""
    neftune_alpha: float = _resume_fixed(default=0.0)
    """Strength of the noise on input embeddings while training (NEFTune; its paper takes 5 to 15); 0 is none."""
    precision: Precision = _resume_fixed(default="fp16")
    """Arithmetic of forward and backward; weights, gradients and optimizer state stay fp32."""
    fp16_initial_scale_power: int = _resume_fixed(default=12)
    """Loss scale at the start is 2 to this power (value of the base model's pre-training)."""
    fp16_scale_window: int = _resume_fixed(default=1000)
    """Steps without overflow before the loss scale doubles (value of the base model's pre-training)."""
    engine: Literal["torch", "deepspeed"] = "torch"
    """What runs the step: PyTorch with FSDP2, or DeepSpeed with ZeRO; it may change on a resume."""
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    """Settings of engine=deepspeed."""
    fsdp_shard_size: int | None = None
    """Processes that share one copy of the model, such as those of a node; null shares it among all."""
    device: Device = "auto"
    """`auto` takes CUDA if there is one."""
    activation_checkpointing: ActivationCheckpointing = field(
        default="none", metadata={"formerly": {"true": "full", "false": "none"}}
    )
    """What the backward pass computes again instead of keeping it: `cheap` norms and GELU, `full` whole blocks."""
    compile: bool = False
    """Let torch.compile fuse what is around attention; the first step waits for it, and rounds a little differently."""
    save_every_steps: int = 100
    """Steps between checkpoints; one is always saved at the end and on a stop."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep; at least 2, so that a damaged one has a predecessor."""
    keep_best: int = 1
    """Checkpoints with the lowest held-out loss to keep besides; only those saved when it was measured can be."""
    keep_every_steps: int = 0
    """Checkpoints of every so many steps to keep for good; 0 keeps none."""
    async_save: bool = True
    """Write checkpoints while training goes on, which takes a copy of weights and moments in memory."""
    eval_every_steps: int = 0
    """Steps between held-out loss measurements; 0 measures none while training."""
    eval_at_start: bool = False
    """Measure before the first step too, if any measurement is made."""
    eval_max_packs: int = 64
    """Packed validation sequences per measurement while training."""
    max_bad_steps: int = 3
    """Consecutive non-finite steps (fp16: at the smallest loss scale) that end the run with code 70."""
    max_loss: float | None = None
    """A step's loss above this ends the run with code 70 before it can be saved; null sets no limit."""
    spike_window: int = 128
    """Steps whose losses a new loss is compared with; 0 looks for no spikes."""
    spike_sigmas: float = 6.0
    """A loss this many standard deviations above their mean, and half above it, is recorded as a spike."""
    peer_timeout_s: float = 1800.0
    """Seconds to wait for the other processes of the run, at its start and in every exchange."""
    numerics_gate: bool = True
    """Before the first step, prove on one pack that attention kernel and precision compute what they should."""
    stop_margin_s: float = 300.0
    """Seconds before the job's end (SLURM_JOB_END_TIME) at which to save and stop."""
    hang_timeout_s: float = 120.0
    """Seconds without progress (or 5 median steps, if longer) after which a process leaves its stacks; 0 is never.

    After twice that it ends with code 71."""
    first_step_timeout_s: float = 1800.0
    """The same for the first step and for loading, measuring and saving; 0 is never."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run folder (needs the extra `tensorboard`)."""
    profile_steps: int = 0
    """Steps whose time to record in detail into the run folder's profile/; it slows them down. 0 records none."""
    profile_start_step: int = 10
    """First step to record, counted from 1; the very first ones are not typical."""

    def problems(self) -> Iterator[str]:
        counts = ("batch_packs", "micro_batch_packs", "save_every_steps", "eval_max_packs", "max_bad_steps")
        yield from _at_least(self, 1, *counts, "fp16_scale_window", "profile_start_step")
        switches = (
            "eval_every_steps",
            "keep_best",
            "keep_every_steps",
            "spike_window",
            "profile_steps",
            "neftune_alpha",
        )
        yield from _at_least(self, 0, *switches, "stop_margin_s", "hang_timeout_s", "first_step_timeout_s")
        yield from _above_zero(self, "epochs", "peer_timeout_s", "spike_sigmas")
        if self.max_loss is not None:
            yield from _above_zero(self, "max_loss")
        if self.fsdp_shard_size is not None:
            yield from _at_least(self, 1, "fsdp_shard_size")
        if self.engine == "deepspeed" and self.lora.rank:
            yield f"lora.rank={self.lora.rank}: only with engine=torch"
        if self.engine == "deepspeed" and self.compile:
            yield "compile=true: only with engine=torch"
        if self.batch_packs % max(1, self.micro_batch_packs):
            yield f"batch_packs={self.batch_packs}: not a multiple of micro_batch_packs={self.micro_batch_packs}"
        if self.max_steps is not None:
            yield from _at_least(self, 1, "max_steps")
        if not 0 <= self.fp16_initial_scale_power <= 24:
            yield f"fp16_initial_scale_power={self.fp16_initial_scale_power}: expected 0 to 24"
        if not 0 <= self.seed < 1 << 63:
            yield f"seed={self.seed}: expected 0 up to 2^63"
        if self.keep_checkpoints < 2:
            yield f"keep_checkpoints={self.keep_checkpoints}: expected at least 2, in case the newest is damaged"


# ------------------------------------------------------------------------------------------------ after training


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are produced."""

    max_new_tokens: int = 128
    """Longest answer."""
    temperature: float = 0.0
    """0 always takes the likeliest token; the card's snippet samples with 0.7."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this total probability."""
    seed: int = 0
    """Seeds sampling."""

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 1, "max_new_tokens")
        yield from _at_least(self, 0, "temperature", "seed")
        if not 0 < self.top_p <= 1:
            yield f"top_p={self.top_p}: expected above 0 and up to 1"


@dataclass(frozen=True)
class EvalConfig:
    """`sft eval`: a checkpoint's held-out loss per source and its answers to fixed prompts."""

    shards: str | None = None
    """Folder made by `sft build`; null takes the one that the checkpoint was trained on."""
    split: Literal["valid", "train"] = "valid"
    """Which packs to measure."""
    max_packs: int | None = None
    """Measure at most this many packs, picked as if at random but always the same; null measures all."""
    micro_batch_packs: int = 1
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
    out: str | None = None
    """Result file; null writes eval.json beside the checkpoint's run."""

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 1, "micro_batch_packs")
        if self.max_packs is not None:
            yield from _at_least(self, 1, "max_packs")


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
    max_shard_bytes: int = 5_000_000_000
    """Largest weight file."""

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 1, "max_shard_bytes")
