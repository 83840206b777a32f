"""Small models and engines for tests."""

import torch

from sft.config.model import InitConfig, LoraConfig, ModelConfig
from sft.config.train import TrainConfig
from sft.data.shards import Shards
from sft.model.lora import PLAIN, add_adapters
from sft.model.neox.model import NeoX
from sft.model.objectives.next_token import NextToken
from sft.model.registry import build
from sft.train.checkpoint.initial_weights import StartingWeights, starting_shape
from sft.train.engine.native import TorchEngine

CPU = torch.device("cpu")


@torch.no_grad()
def starting_model(init: InitConfig, shape: ModelConfig, seed: int = 0, lora: LoraConfig = PLAIN) -> NeoX:
    """The model with its first weights."""
    model, weights = build(shape, CPU), StartingWeights(init, shape, seed, lora)
    add_adapters(model, lora)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights.flat("weight", name, 0, parameter.numel()).view(parameter.shape))
    return model


def make_engine(config: TrainConfig, shards: Shards) -> TorchEngine:
    """An engine at the start of a run, alone."""
    shape = starting_shape(config.model, shards)
    return TorchEngine(NextToken(starting_model(config.model, shape, config.seed, config.lora)), config, CPU)
