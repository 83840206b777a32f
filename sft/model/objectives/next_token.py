"""The objective of supervised fine-tuning: cross-entropy of the next token at the supervised positions.

Shape letters: T tokens of the batch.
"""

from torch import Tensor

from sft.model.attention import Documents
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.loss import supervised_loss_sum, token_losses
from sft.model.objectives.base import CORRECT, LOSS, Objective


class NextToken(Objective):
    """A language model together with its loss on the supervised tokens."""

    def forward(
        self,
        input_ids_T: Tensor,
        documents: Documents,
        targets_T: Tensor,
        *,
        noise: EmbeddingNoise | None = None,
        per_token: bool = False,
    ) -> dict[str, Tensor]:
        """The summed loss, or each supervised token's loss and whether its target was the most likely."""
        hidden_TD, head_VD = self.model(input_ids_T, documents, noise=noise), self.model.head_weight
        if per_token:
            loss_S, correct_S = token_losses(hidden_TD, head_VD, targets_T)
            return {LOSS: loss_S, CORRECT: correct_S}
        return {LOSS: supervised_loss_sum(hidden_TD, head_VD, targets_T)}
