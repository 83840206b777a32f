"""A checkpoint, run folder or exported folder → a model that is ready to answer."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sft.chat.tokenizer import ChatTokenizer
from sft.errors import ConfigError
from sft.model.huggingface import load_weights, read_config
from sft.model.neox import NeoX, build
from sft.storage.manifest import MANIFEST
from sft.train.checkpoint import State, damage, published, require_whole


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, and what its checkpoint says about its training, if it is one of ours."""

    folder: Path
    model: NeoX
    tokenizer: ChatTokenizer
    state: State | None


def load(path: Path, device: torch.device) -> Loaded:
    """Load a checkpoint, the newest whole one of a run, or a Hugging Face folder.

    Raises: ConfigError if it is none of these, StorageError if it is damaged.
    """
    folder = find(path)
    state = require_whole(folder) if (folder / MANIFEST).is_file() else None
    shape = read_config(folder)
    tokenizer = ChatTokenizer.load(folder)
    if tokenizer.num_ids > shape.vocab_size:
        raise ConfigError(f"{tokenizer.num_ids} token ids for {shape.vocab_size} embedding rows", on=folder)
    model = build(shape, device)
    load_weights(model, folder)
    return Loaded(folder, model.eval(), tokenizer, state)


def find(path: Path) -> Path:
    """The folder that holds the weights: the path itself, or a run's newest whole checkpoint.

    Raises: ConfigError if there is none.
    """
    if (path / "config.json").is_file():
        return path
    found = published(path / "checkpoints") if (path / "checkpoints").is_dir() else []
    for folder in found:
        if not any(damage(folder)):
            return folder
    what = "no whole checkpoint in this run" if found else "holds no checkpoint"
    raise ConfigError(what, on=path, hint="name a checkpoint, a run folder or an exported folder")
