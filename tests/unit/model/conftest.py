"""A small GPT-NeoX with random weights everywhere, biases and norms included, as ours and as transformers'."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from sft.config.model import ModelConfig
from sft.model.neox.hf_config import HEAD, NEWER_HEAD, config_json
from sft.model.neox.model import NeoX

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=64, num_layers=3, num_heads=4, intermediate_size=112, max_positions=128, rotary_pct=0.5
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config() -> ModelConfig:
    return CONFIG


@pytest.fixture
def model(config: ModelConfig) -> NeoX:
    generator = torch.Generator().manual_seed(1)
    model = NeoX(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.15, generator=generator)
    return model


@pytest.fixture(params=["eager", "sdpa"])
def reference(model: NeoX, request: pytest.FixtureRequest) -> GPTNeoXForCausalLM:
    theirs = GPTNeoXConfig(**config_json(model.config, torch.float32), attn_implementation=request.param)
    reference = GPTNeoXForCausalLM(theirs)
    reference.load_state_dict({their_name(name): value for name, value in model.state_dict().items()})
    return reference.eval()


@pytest.fixture
def input_ids_T(config: ModelConfig) -> Tensor:
    return torch.randint(config.vocab_size, (60,), generator=torch.Generator().manual_seed(2))


def their_name(name: str) -> str:
    return NEWER_HEAD if name == HEAD else name
