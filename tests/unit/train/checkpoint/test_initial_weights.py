import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sft.config.model import InitConfig, ModelConfig
from sft.config.train import TrainConfig
from sft.data.shards import Shards
from sft.errors import ConfigError
from sft.model.hf_folder import write_folder
from sft.model.neox.presets import PRESETS
from sft.train.checkpoint.initial_weights import starting_shape
from tests.support.models import starting_model

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
SCRATCH = InitConfig(weights="scratch", preset="tiny", vocab_size=64)


@pytest.fixture
def shards(tiny_shards: Path) -> Shards:
    return Shards.open(tiny_shards)


@pytest.fixture
def base_model(tmp_path: Path, shards: Shards) -> Path:
    """A Hugging Face folder with weights of the tiny shape and the tokenizer of the shards."""
    shape = starting_shape(SCRATCH, shards)
    model = starting_model(SCRATCH, shape, 5)
    write_folder(dict(model.named_parameters()), shape, tmp_path, torch.float16, 10**9)
    (tmp_path / "tokenizer.json").write_bytes(shards.tokenizer_path.read_bytes())
    return tmp_path


def test_scratch_weights_follow_from_the_seed(shards: Shards) -> None:
    shape = starting_shape(SCRATCH, shards)
    first, again, other = (starting_model(SCRATCH, shape, seed).head_weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_half_precision_folder_is_loaded_into_fp32(base_model: Path, shards: Shards) -> None:
    init = InitConfig(weights=str(base_model))
    model = starting_model(init, starting_shape(init, shards), 0)
    expected = starting_model(SCRATCH, model.config, 5).head_weight.half().float()
    assert model.head_weight.dtype == torch.float32
    assert torch.equal(model.head_weight, expected)


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        (
            InitConfig(weights="scratch", preset="tiny", vocab_size=63),
            "63 embedding rows, the shards' tokenizer 64 ids",
        ),
        (InitConfig(weights="scratch", preset="tinny"), "model.preset=tinny: no such shape"),
        (InitConfig(weights="no/such/folder"), "not a model folder"),
    ],
)
def test_model_that_cannot_be_trained_on_these_shards_is_refused(
    init: InitConfig, sentence: str, shards: Shards
) -> None:
    with pytest.raises(ConfigError) as refusal:
        starting_shape(init, shards)
    assert sentence in refusal.value.message()


def test_model_with_too_few_positions_is_refused(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ModelConfig(64, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, max_positions=47)
    monkeypatch.setitem(PRESETS, "short", short)
    with pytest.raises(ConfigError, match="47 positions, the shards are packed to 48 tokens"):
        starting_shape(InitConfig(weights="scratch", preset="short"), shards)


def test_folder_that_is_not_of_the_preset_is_refused_with_every_difference(base_model: Path, shards: Shards) -> None:
    with pytest.raises(ConfigError) as refusal:
        starting_shape(InitConfig(weights=str(base_model), preset="small_cpu"), shards)
    for line in ("vocab_size is 64, in preset small_cpu 50432", "hidden_size is 128, in preset small_cpu 256"):
        assert line in refusal.value.message()


def test_folder_of_another_tokenizer_is_refused(base_model: Path, shards: Shards) -> None:
    (base_model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"token0": 1, "token1": 0}}}))
    with pytest.raises(ConfigError, match="another vocabulary than the tokenizer of the shards"):
        starting_shape(InitConfig(weights=str(base_model)), shards)


def test_folder_whose_tokenizer_lacks_only_the_added_tags_fits(base_model: Path, shards: Shards) -> None:
    tokenizer = json.loads(shards.tokenizer_path.read_text())
    (base_model / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": []}))
    assert starting_shape(InitConfig(weights=str(base_model)), shards).vocab_size == 64
