"""A checkpoint of a very small model with a very small tokenizer of GPT-NeoX-20B's form."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sft.chat.formats.stablelm import END, PADDING
from sft.chat.tokenizer import ChatTokenizer
from sft.config.model import InitConfig, ModelConfig
from sft.config.train import TrainConfig
from sft.model.hf_folder import write_folder
from sft.model.registry import build
from sft.train.checkpoint.state import State
from sft.train.monitor.counts import Counts
from tests.support.checkpoints import publish

CONFIG = ModelConfig(
    vocab_size=384, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, max_positions=256
)
TEXT = ["the tide rises twice a day", "- one\n- two\n\nthree", "how do you do?", "user, assistant, system"]
SHARDS = {
    "name": "two_sources",
    "content_digest": "ab" * 32,
    "sources": {
        "free": {
            "title": "Free Talk",
            "hub_id": "someone/free",
            "license": "apache-2.0",
            "commercial": True,
            "citation": "Someone, Free Talk, 2023",
        },
        "bound": {
            "title": "Bound Talk",
            "hub_id": "another/bound",
            "license": "cc-by-nc-4.0",
            "commercial": False,
            "citation": "Another, Bound Talk, 2023",
        },
    },
}


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    raw.add_tokens([AddedToken(" " * width, normalized=True) for width in (4, 3, 2)])
    return ChatTokenizer(raw)


@pytest.fixture(scope="session")
def checkpoint(tokenizer: ChatTokenizer, state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build(dataclasses.replace(CONFIG, initializer_range=0.2), "cpu")
    model.initialise(torch.Generator().manual_seed(0))

    def write(folder: Path) -> None:
        write_folder(dict(model.named_parameters()), CONFIG, folder, torch.float32, 10**9)
        (folder / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
        state.write(folder)

    return publish(tmp_path_factory.mktemp("run"), 1234, write)


@pytest.fixture(scope="session")
def state() -> State:
    config = TrainConfig(shards="shards", model=InitConfig(weights="/home/someone/models/base-3b"), out="runs/first")
    return State(
        step=1234,
        position=1234 * 256,
        epoch=1.0,
        counts=Counts(num_steps=1234, num_tokens=9_000_000, num_supervised_tokens=6_000_000),
        identity={},
        config=dataclasses.asdict(config),
        shards=SHARDS,
        engine={},
        ledger="",
        eval_loss=None,
        rng={},
        versions={},
    )
