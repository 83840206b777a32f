"""The interface between an engine and the objective that it minimises.

Shape letters: T tokens of the batch, S supervised ones among them.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from sft.model.attention import Documents
from sft.model.base import LanguageModel
from sft.model.embedding_noise import EmbeddingNoise

LOSS = "loss"
"""The sum that training minimises, divided by the number of supervised tokens."""
CORRECT = "correct"
"""For each supervised token, whether its target was the most likely."""


class Objective(nn.Module, ABC):
    """A model and its loss as one module, so that the code that shards the weights sees every use of them."""

    names: tuple[str, ...] = (LOSS,)
    """The sums over supervised tokens that a forward pass returns: `loss` and other values to report."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(
        self,
        input_ids_T: Tensor,
        documents: Documents,
        targets_T: Tensor,
        *,
        noise: EmbeddingNoise | None = None,
        per_token: bool = False,
    ) -> dict[str, Tensor]:
        """The named sums; with `per_token`, `loss` and `correct` of each supervised token instead.

        Shapes: (), or (S,) with `per_token`.
        """
