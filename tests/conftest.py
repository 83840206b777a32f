"""Fixtures for more than one folder of tests."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings

from sft.chat.tokenizer import ChatTokenizer, train_tokenizer
from sft.config.data import BuildConfig
from sft.config.engine import OptimizerConfig
from sft.config.model import InitConfig
from sft.config.train import TrainConfig
from sft.data.documents import DOCUMENTS, DocumentTable, write_documents
from sft.data.manifest import TokenizerFacts
from sft.data.shards import KIND, SCHEMA_VERSION, TOKENIZER, Pack, shard_name, write_shard
from sft.data.sources.recipe import load_mixture
from sft.hashing import file_sha256
from sft.storage.manifest import write_manifest
from tests.support import forks as forks
from tests.support.configs import changed
from tests.support.manifests import build_manifest, source_facts, split_facts
from tests.support.packs import laid

# Generated cases are the same on every machine, and a slow machine fails no test.
hypothesis_settings.register_profile("sft", derandomize=True, deadline=None, database=None)
hypothesis_settings.load_profile("sft")

TINY_SEQ_LEN, TINY_NUM_IDS = 48, 64
TINY_SOURCES = ("alpha", "beta")

TINY_MODEL = InitConfig(weights="scratch", preset="tiny", vocab_size=TINY_NUM_IDS)

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-made build of two sources: 24 packs to train on, 6 held out. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("shards")
    write_tiny_shards(folder)
    return folder


@pytest.fixture
def tiny_config(tiny_shards: Path, tmp_path: Path) -> MakeConfig:
    """Makes configs of a 12-step run of a tiny model on the CPU; keywords replace fields."""
    return partial(make_tiny_config, shards=str(tiny_shards), out=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def shared_tiny_config(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """The same for runs that several tests of a module look at; each call has its own run folder."""

    def make(**changes: Any) -> TrainConfig:
        out = tmp_path_factory.mktemp("shared") / "run"
        return make_tiny_config(shards=str(tiny_shards), out=str(out), **changes)

    return make


def make_tiny_config(**changes: Any) -> TrainConfig:
    """A run of 12 steps over two epochs, saved every 4 steps."""
    first = TrainConfig(shards=changes.pop("shards"), out=changes.pop("out"), model=TINY_MODEL)
    fields: dict[str, Any] = {
        "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=3),
        "batch_packs": 4,
        "micro_batch_packs": 2,
        "epochs": 2.0,
        "precision": "fp32",
        "device": "cpu",
        "checkpoint__every_steps": 4,
    }
    return changed(first, **{**fields, **changes})


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, where bits are compared between processes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_tiny_shards(folder: Path, num_train: int = 24, num_valid: int = 6) -> None:
    """Write a build as `sft build` would, with random tokens and masks."""
    rng = np.random.default_rng(0)
    packs = _random_packs(rng, num_train + num_valid)
    splits = {"train": packs[:num_train], "valid": packs[num_train:]}
    facts = {}
    for name, members in splits.items():
        file = shard_name(name, 0, 1)
        write_shard(folder / file, laid(members))
        facts[name] = split_facts(file, members)
    write_documents(folder / DOCUMENTS, _documents(packs, num_train))
    vocabulary = {f"token{number}": number for number in range(TINY_NUM_IDS - 3)}
    (folder / TOKENIZER).write_text(json.dumps({"model": {"vocab": vocabulary}}))
    manifest = build_manifest(
        name="tiny",
        seq_len=TINY_SEQ_LEN,
        splits=facts,
        tokenizer=TokenizerFacts(file_sha256(folder / TOKENIZER), TINY_NUM_IDS),
        sources={name: source_facts(license="CC0-1.0") for name in TINY_SOURCES},
    )
    write_manifest(folder, KIND, SCHEMA_VERSION, manifest.to_json())


def _random_packs(rng: np.random.Generator, count: int) -> list[Pack]:
    packs, doc_id = [], 0
    for _ in range(count):
        lengths = rng.integers(4, TINY_SEQ_LEN // 3, 3)
        ids_T = np.ones(TINY_SEQ_LEN, np.uint16)
        mask_T = np.zeros(TINY_SEQ_LEN, np.uint8)
        num_tokens = int(lengths.sum())
        ids_T[:num_tokens] = rng.integers(5, TINY_NUM_IDS, num_tokens)
        mask_T[:num_tokens] = rng.random(num_tokens) < 0.5
        mask_T[np.cumsum(lengths) - lengths] = 0
        ids = np.arange(doc_id, doc_id + len(lengths))
        packs.append(Pack(ids_T, mask_T, lengths.astype(np.uint16), ids.astype(np.uint32), int(mask_T.sum())))
        doc_id += len(lengths)
    return packs


def _documents(packs: list[Pack], num_train: int) -> DocumentTable:
    count = sum(len(pack.doc_ids_N) for pack in packs)
    zeros, numbers = np.zeros(count, np.int64), np.arange(count)
    supervised = [int(pack.loss_mask_T[place].sum()) for pack in packs for _, place in pack.documents()]
    return DocumentTable(
        sources=TINY_SOURCES,
        files=("rows.jsonl",),
        source=numbers % len(TINY_SOURCES),
        file=zeros,
        row=numbers,
        piece=zeros,
        first_turn=zeros,
        digest=numbers.astype(np.uint64),
        group=numbers.astype(np.uint64),
        content=numbers.astype(np.uint64),
        num_tokens=np.concatenate([pack.doc_lengths_N for pack in packs]),
        num_supervised=np.array(supervised),
        truncated=zeros.astype(bool),
        uses=np.ones(count, np.int64),
        held_out=numbers >= 3 * num_train,
    )


# ------------------------------------------------------------------------------------------------ text and raw rows

TEXTS = (
    "The tide rises twice a day, and the harbour fills with small boats.",
    "How many apples are left if you eat three of seven? Four apples are left.",
    "def area(width, height):\n    return width * height\n",
    "- first\n- second\n\nWhat do you think of the weather today, and of the news?",
    "You are an assistant. A user asks a question; the assistant answers it, shortly and politely.",
    "<|USER|> and <|ASSISTANT|> are only words here. Grüße aus Köln, ça va? 你好，世界。",
)
NUM_IDS = 600

TURNS_CONVERT = '''\
"""Rows that hold the texts of their turns."""

from sft.chat.conversation import Message, from_turns, wrong_schema


def convert(row):
    """The turns, the user's first."""
    turns = row.get("turns")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        return wrong_schema(row, "turns as a list of texts")
    return from_turns(Message("assistant" if number % 2 else "user", text) for number, text in enumerate(turns))
'''
TURNS_RECIPE = {
    "title": "Turns",
    "hub_id": "someone/turns",
    "license": "CC0-1.0",
    "citation": "Someone, Turns, 2023",
    "system": "Answer shortly.",
}


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    """A byte-level BPE tokenizer of GPT-NeoX-20B's form with a few hundred ids."""
    return train_tokenizer(TEXTS, NUM_IDS)


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a tokenizer.json."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer.json, encoding="utf-8")
    return path


@dataclass(frozen=True)
class RawMixture:
    """A mixture file with its recipes and raw files."""

    mixture: Path
    recipes: Path
    sources_dir: Path
    settings: tuple[str, ...]

    def config(self, *arguments: str) -> BuildConfig:
        """The build config, single process and 64 tokens per pack unless the arguments say otherwise."""
        return load_mixture(self.mixture, [*self.settings, *arguments]).config


@pytest.fixture
def write_mixture(tmp_path: Path, tokenizer_file: Path) -> Callable[..., RawMixture]:
    """Writes one source per keyword from its rows, each the list of its turns' texts."""
    return partial(write_raw_mixture, tmp_path, tokenizer_file)


def write_raw_mixture(folder: Path, tokenizer_file: Path, **sources: list[list[str]]) -> RawMixture:
    """Recipes, raw files and a mixture below `folder`."""
    recipes, raw = folder / "recipes", folder / "raw"
    raw.mkdir(parents=True)
    for name, rows in sources.items():
        (recipes / name).mkdir(parents=True)
        recipe = {**TURNS_RECIPE, "files": [f"{name}.jsonl"]}
        (recipes / name / "recipe.yaml").write_text(json.dumps(recipe))
        (recipes / name / "convert.py").write_text(TURNS_CONVERT)
        lines = (json.dumps({"turns": turns}, ensure_ascii=False) + "\n" for turns in rows)
        (raw / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    mixture = recipes / "mixtures" / "test.yaml"
    mixture.parent.mkdir()
    mixture.write_text(json.dumps({"name": "test", "sources": {name: {} for name in sources}}))
    settings = (f"sources_dir={raw}", f"tokenizer={tokenizer_file}", f"out={folder / 'shards'}")
    return RawMixture(mixture, recipes, raw, (*settings, "workers=1", "seq_len=64"))
