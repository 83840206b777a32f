"""What training minimises, as one module: whoever shards the weights sees every use of them.

T = tokens of the batch.
"""

from torch import Tensor, nn

from sft.model.attention import Documents
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.loss import supervised_loss_sum, token_losses
from sft.model.neox.model import NeoX


class Objective(nn.Module):
    """A model together with its loss on the supervised tokens."""

    def __init__(self, model: NeoX) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids_T: Tensor,
        documents: Documents,
        targets_T: Tensor,
        *,
        noise: EmbeddingNoise | None = None,
        per_token: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The summed loss, or each supervised token's loss and whether its target was the likeliest."""
        hidden_TD = self.model(input_ids_T, documents, noise=noise)
        measure = token_losses if per_token else supervised_loss_sum
        return measure(hidden_TD, self.model.head_weight, targets_T)
