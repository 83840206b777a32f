"""The interface of a language model of any family, for training, generation and export.

Shape letters: T tokens, D width of the residual stream, V vocabulary rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sft.config.model import ActivationCheckpointing, ModelConfig
from sft.model.attention import Documents
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.kv_cache import KVCache


class LanguageModel(nn.Module, ABC):
    """A decoder that reads a flat row of packed documents, without a batch dimension.

    Invariant: parameters have the names that Hugging Face folders of the family have on disk.
    """

    def __init__(self, config: ModelConfig, *, activation_checkpointing: ActivationCheckpointing = "none") -> None:
        """`activation_checkpointing` sets which activations the blocks keep for the backward pass."""
        super().__init__()
        self.config = config
        self.activation_checkpointing: ActivationCheckpointing = activation_checkpointing

    @abstractmethod
    def forward(
        self,
        input_ids_T: Tensor,
        documents: Documents,
        cache: KVCache | None = None,
        noise: EmbeddingNoise | None = None,
    ) -> Tensor:
        """Hidden states after the final norm; with a cache, the tokens continue the sequence in it.

        Shapes: (T,) → (T, D).
        Raises: DataError if the documents do not cover the tokens, are longer than the model's positions, or are
        several with a cache.
        """

    @property
    @abstractmethod
    def head_weight(self) -> Tensor:
        """The matrix that turns hidden states into logits.

        Shapes: (V, D).
        """

    @abstractmethod
    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Scores of every vocabulary row as the next token.

        Shapes: (T, D) → (T, V).
        """

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Fill the weights for training from scratch: the same numbers for the same CPU generator, on any device."""

    @property
    @abstractmethod
    def flops_per_token(self) -> int:
        """Operations of a forward and backward pass per token, in the matrix products with weights."""

    @property
    @abstractmethod
    def flops_per_pair(self) -> int:
        """Operations of a forward and backward pass per pair of tokens that attend to each other, in all layers."""

    @abstractmethod
    def adapter_layers(self) -> Iterator[tuple[nn.Module, str]]:
        """The linear layers that may get an adapter: the module that owns each, and the attribute it is under."""

    @abstractmethod
    def compiled_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """The methods to compile with torch.compile, none of them with attention: module and attribute.

        The first argument of each is a tensor with the tokens in its first dimension.
        """

    @abstractmethod
    def linear_modules(self) -> Iterator[nn.Module]:
        """Modules that hold only linear layers, which autocast rounds: attention's and the MLP's, in order."""

    @abstractmethod
    def gate_layers(self) -> dict[str, str]:
        """The linear layers whose gradients the numerics gate compares: description → name.

        The gradient of the first passes through the whole model, that of the last only through its end.
        """

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
