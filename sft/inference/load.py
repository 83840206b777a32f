"""A checkpoint, run folder or exported folder → a model that is ready to answer."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sft.chat.tokenizer import ChatTokenizer
from sft.errors import ConfigError
from sft.model.hf_folder import load_weights, read_config
from sft.model.lora import PLAIN
from sft.model.neox.model import NeoX, build
from sft.storage.manifest import MANIFEST
from sft.train.checkpoint.state import State
from sft.train.checkpoint.store import newest_whole, published, require_whole
from sft.train.run_layout import STATE_FILE, RunLayout


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, and what its checkpoint says about its training, if it is one of ours."""

    folder: Path
    model: NeoX
    tokenizer: ChatTokenizer
    state: State | None


def load(path: Path, device: torch.device) -> LoadedModel:
    """Load a checkpoint, the newest whole one of a run, or a Hugging Face folder.

    Raises: ConfigError if it is none of these, StorageError if it is damaged.
    """
    folder, state = find_checked(path)
    shape = read_config(folder)
    tokenizer = ChatTokenizer.load(folder)
    if tokenizer.num_ids > shape.vocab_size:
        raise ConfigError(f"{tokenizer.num_ids} token ids for {shape.vocab_size} embedding rows", on=folder)
    model = build(shape, device)
    load_weights(model, folder, state.lora if state else PLAIN)
    return LoadedModel(folder, model.eval(), tokenizer, state)


def find_checked(path: Path) -> tuple[Path, State | None]:
    """The folder that holds the weights and, if it is a checkpoint of ours with true hashes, its state.

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
