"""LoRA: the model's weights stay frozen; a low-rank product of two matrices beside some of them is trained.

A layer `N` gets the parameters `N.lora_a` and `N.lora_b`; all others keep their names. Written here instead of taken
from `peft`, because that wraps a transformers model and renames every parameter, for a few lines of arithmetic.
There is no dropout: it would make a run depend on how its batches are divided.

Shape letters: T tokens, I inputs and O outputs of a layer, A the adapter's rank.
Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sft.config.model import LoraConfig
from sft.model.base import LanguageModel

PLAIN = LoraConfig()
"""No adapters."""
A, B = ".lora_a", ".lora_b"


class LoraLinear(nn.Linear):
    """A frozen linear layer whose output is changed by x → B A x · alpha / rank."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias, self.scaling = base.weight, base.bias, _scaling(config)
        self.lora_a = nn.Parameter(base.weight.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_empty(base.out_features, config.rank))

    def forward(self, x_TI: Tensor) -> Tensor:
        """The layer's output, changed by its adapter.

        Shapes: (T, I) → (T, O).
        """
        # The adapter first: a layer that is recomputed in the backward pass ends before its last, largest product.
        change_TO = linear(linear(x_TI, self.lora_a) * self.scaling, self.lora_b)
        return super().forward(x_TI) + change_TO


def add_adapters(model: LanguageModel, config: LoraConfig) -> None:
    """Freeze the model and put adapters, not yet initialised, beside the layers that the config names."""
    if not config.rank:
        return
    model.requires_grad_(False)
    for owner, name in list(model.adapter_layers()):
        if name in config.targets:
            setattr(owner, name, LoraLinear(getattr(owner, name), config))


def first_values(name: str, shape: torch.Size, seed: int) -> Tensor:
    """The initial values of an adapter's parameter: A normal with variance 1 / I, B zero.

    They depend only on the arguments, so that each process can make its share.
    """
    if name.endswith(B):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(shape).normal_(0.0, shape[1] ** -0.5, generator=generator)


def is_adapter(name: str) -> bool:
    """True if the parameter of this name belongs to an adapter."""
    return name.endswith((A, B))


def merged(stored: Mapping[str, Tensor], config: LoraConfig) -> Mapping[str, Tensor]:
    """The weights of the equivalent plain model, each computed on access."""
    return Merged(stored, config) if config.rank else stored


class Merged(Mapping[str, Tensor]):
    """Weights with their adapters' products added in fp32, under the names of the plain model."""

    def __init__(self, stored: Mapping[str, Tensor], config: LoraConfig) -> None:
        self._stored, self._scaling = stored, _scaling(config)

    def __getitem__(self, name: str) -> Tensor:
        weight_OI, layer = self._stored[name], name.removesuffix(".weight")
        if layer + A not in self._stored:
            return weight_OI
        b_OA, a_AI = self._stored[layer + B].float(), self._stored[layer + A].float()
        return (weight_OI.float() + b_OA @ a_AI * self._scaling).to(weight_OI.dtype)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._stored if not is_adapter(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _scaling(config: LoraConfig) -> float:
    return config.alpha / config.rank
