"""A checkpoint with adapters is evaluated and exported as the plain model that computes the same."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sft.chat.tokenizer import ChatTokenizer
from sft.config.inference import ExportConfig
from sft.config.model import LoraConfig, ModelConfig
from sft.config.yaml_text import as_values
from sft.errors import DataError
from sft.export.hf_export import export
from sft.export.model_card import CardFacts, model_card
from sft.inference.load import load
from sft.model.attention import Documents
from sft.model.hf_folder import load_weights, write_folder
from sft.model.lora import add_adapters, is_adapter
from sft.model.neox.model import NeoX
from sft.model.registry import build
from sft.train.checkpoint.state import State
from tests.support.checkpoints import publish

SHAPE = ModelConfig(
    vocab_size=384,
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    intermediate_size=128,
    max_positions=256,
    initializer_range=0.2,
)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("query_key_value", "dense_4h_to_h"))
NUM_TOKENS = 50


@pytest.fixture(scope="module")
def model() -> NeoX:
    """A model whose adapters are far from their first values."""
    model, generator = build(SHAPE, "cpu"), torch.Generator().manual_seed(0)
    model.initialise(generator)
    add_adapters(model, LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(0.0, 0.2, generator=generator)
    return model


@pytest.fixture(scope="module")
def adapted(model: NeoX, tokenizer: ChatTokenizer, state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint."""

    def write(folder: Path) -> None:
        write_folder(dict(model.named_parameters()), SHAPE, folder, torch.float32, 10**9)
        (folder / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
        dataclasses.replace(state, config={**state.config, "lora": as_values(LORA)}).write(folder)

    return publish(tmp_path_factory.mktemp("run"), 1234, write)


@torch.inference_mode()
def logits(model: NeoX) -> Tensor:
    return model.logits(model(torch.arange(NUM_TOKENS) * 7, Documents.of([NUM_TOKENS])))


def test_transformers_computes_from_the_export_what_the_adapters_do(model: NeoX, adapted: Path, tmp_path: Path) -> None:
    export(adapted, tmp_path / "out", ExportConfig(dtype="fp32"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        found_TV = theirs(torch.arange(NUM_TOKENS)[None] * 7, use_cache=False).logits[0]
    torch.testing.assert_close(found_TV, logits(model), rtol=1e-5, atol=1e-5)
    assert not any(is_adapter(name) for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_evaluation_computes_what_the_adapters_do(model: NeoX, adapted: Path) -> None:
    loaded = load(adapted, torch.device("cpu"))
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-5, atol=1e-5)
    assert not any(is_adapter(name) for name in loaded.model.state_dict())


def test_adapters_are_never_left_out_silently(adapted: Path) -> None:
    with pytest.raises(DataError, match="lora_a is not expected"):
        load_weights(build(SHAPE, "cpu"), adapted)


def test_adapters_that_the_config_promises_must_be_there(adapted: Path) -> None:
    more = dataclasses.replace(LORA, targets=("query_key_value", "dense_4h_to_h", "dense"))
    with pytest.raises(DataError, match=r"dense\.lora_a is missing"):
        load_weights(build(SHAPE, "cpu"), adapted, more)


def test_the_card_tells_that_adapters_were_trained(adapted: Path, tokenizer: ChatTokenizer) -> None:
    training = dataclasses.asdict(State.read(adapted))
    card = model_card(CardFacts("small", SHAPE, 1, "fp16", "Be kind.\n", tokenizer, training))
    expected = "| adapters | LoRA of rank 3 and alpha 6.0 on query_key_value, dense_4h_to_h, merged into the weights |"
    assert expected in card
