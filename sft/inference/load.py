"""A checkpoint, run folder or exported folder → a model that is ready to answer."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sft.chat.formats.registry import format_named
from sft.chat.tokenizer import ChatTokenizer
from sft.errors import ConfigError
from sft.model.base import LanguageModel
from sft.model.hf_folder import load_weights, read_config
from sft.model.lora import PLAIN
from sft.model.registry import build
from sft.storage.manifest import MANIFEST
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import newest_whole, published, require_whole
from sft.train.run_layout import STATE_FILE, RunLayout

TOKENIZER_CONFIG = "tokenizer_config.json"
FORMAT_KEY = "chat_format"
"""The key of the chat format in an exported tokenizer's settings."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, and the training state if it is a checkpoint of ours."""

    folder: Path
    model: LanguageModel
    tokenizer: ChatTokenizer
    state: State | None


def load(path: Path, device: torch.device) -> LoadedModel:
    """Load a checkpoint, the newest whole one of a run, or a Hugging Face folder.

    Raises: ConfigError if it is none of these, StorageError if it is damaged.
    """
    folder, state = find_checked(path)
    shape = read_config(folder)
    tokenizer = load_tokenizer(folder, state)
    if tokenizer.num_ids > shape.vocab_size:
        raise ConfigError(f"{tokenizer.num_ids} token ids for {shape.vocab_size} embedding rows", on=folder)
    model = build(shape, device)
    load_weights(model, folder, state.lora if state else PLAIN)
    return LoadedModel(folder, model.eval(), tokenizer, state)


def load_tokenizer(folder: Path, state: State | None) -> ChatTokenizer:
    """The tokenizer of a folder of weights, with the chat format that its training or its export recorded."""
    return ChatTokenizer.load(folder, format_named(state.shards.get("format") if state else _exported_format(folder)))


def _exported_format(folder: Path) -> str | None:
    try:
        settings = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a folder of another program may have none
        return None
    name = settings.get(FORMAT_KEY) if isinstance(settings, dict) else None
    return name if isinstance(name, str) else None


def find_checked(path: Path) -> tuple[Path, State | None]:
    """The folder that holds the weights and, if it is a checkpoint of ours with matching hashes, its state.

    Raises: ConfigError if there is none, StorageError if it is a damaged checkpoint.
    """
    if (path / STATE_FILE).is_file() or (path / MANIFEST).is_file():
        return path, require_whole(path)
    if (path / "config.json").is_file():
        return path, None
    folder = find(path)
    return folder, State.read(folder)


def find(path: Path) -> Path:
    """The folder that holds the weights: the path itself, or a run's newest whole checkpoint.

    Raises: ConfigError if there is none.
    """
    if (path / "config.json").is_file():
        return path
    checkpoints = RunLayout(path).checkpoints
    if newest := newest_whole(checkpoints, set_aside=False):
        return newest
    what = "no whole checkpoint in this run" if published(checkpoints) else "holds no checkpoint"
    raise ConfigError(what, on=path, hint="name a checkpoint, a run folder or an exported folder")
