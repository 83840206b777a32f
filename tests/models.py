"""Small models and engines for tests."""

import torch

from sft.config import InitConfig, ModelConfig, TrainConfig
from sft.data.shards import Shards
from sft.model.neox import NeoX, build
from sft.train.engine.torch import TorchEngine
from sft.train.weights import StartingWeights, starting_shape

CPU = torch.device("cpu")


@torch.no_grad()
def starting_model(init: InitConfig, shape: ModelConfig, seed: int = 0) -> NeoX:
    """The model with its first weights."""
    model, weights = build(shape, CPU), StartingWeights(init, shape, seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights.flat("weight", name, 0, parameter.numel()).view(parameter.shape))
    return model


def make_engine(config: TrainConfig, shards: Shards) -> TorchEngine:
    """An engine at the start of a run, alone."""
    return TorchEngine(starting_model(config.model, starting_shape(config.model, shards), config.seed), config, CPU)
