"""GPT-NeoX in plain PyTorch: every block adds attention and MLP, side by side, to the residual stream.

The input is a flat row of packed documents, without a batch dimension. Parameters have the names that
Hugging Face GPT-NeoX folders have on disk, so no parameter is renamed.

Shape letters: T tokens, D width of the residual stream, H heads, E dimensions per head, G rotated ones among
them, X = 3 D, F width of the MLP, V vocabulary rows, L positions.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from sft.config.model import ActivationCheckpointing, ModelConfig
from sft.errors import DataError
from sft.model.activation_checkpointing import Call, runners
from sft.model.attention import Documents, attend, attend_to_cache
from sft.model.base import LanguageModel
from sft.model.embedding_noise import EmbeddingNoise
from sft.model.kv_cache import KVCache

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine for each token, both of shape (T, 1, 1, G / 2), fp32."""


class Attention(nn.Module):
    """Layer norm and self-attention with rotary positions on the first G dimensions of each head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        x_TD: Tensor,
        norm: nn.LayerNorm,
        rotation: Rotation,
        documents: Documents,
        cache: KVCache | None,
        run_part: Call,
    ) -> Tensor:
        q_THE, k_THE, v_THE = self._heads(x_TD, norm, rotation, run_part)
        if cache is None:
            out_THE = attend(q_THE, k_THE, v_THE, documents)
        else:
            out_THE = attend_to_cache(q_THE, *cache.append(self.layer, k_THE, v_THE))
        out_TD: Tensor = run_part(self._out, out_THE)
        return out_TD

    def _heads(
        self, x_TD: Tensor, norm: nn.LayerNorm, rotation: Rotation, run_part: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv_TX: Tensor = run_part(lambda x_TD: self.query_key_value(norm(x_TD)), x_TD)
        # The fused weight holds q, k and v of the first head, then those of the second, and so on.
        qk_TH2E, v_TH1E = torch.split(qkv_TX.view(x_TD.shape[0], -1, 3, self.head_dim), [2, 1], dim=2)
        q_THE, k_THE = rotate(qk_TH2E, rotation).unbind(2)
        # The values are copied: as a view they would keep the queries and keys from before the rotation in memory.
        return q_THE, k_THE, v_TH1E.squeeze(2).contiguous()

    def _out(self, out_THE: Tensor) -> Tensor:
        out_TD: Tensor = self.dense(out_THE.flatten(1))
        return out_TD


class MLP(nn.Module):
    """Layer norm and two linear layers around the exact (erf) GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_TD: Tensor, norm: nn.LayerNorm, run_part: Call) -> Tensor:
        up_TF = run_part(lambda x_TD: self.dense_h_to_4h(norm(x_TD)), x_TD)
        out_TD: Tensor = run_part(lambda up_TF: self.dense_4h_to_h(gelu(up_TF)), up_TF)
        return out_TD


class Block(nn.Module):
    """One layer; attention and MLP both read the block's input."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(
        self, x_TD: Tensor, rotation: Rotation, documents: Documents, cache: KVCache | None, run_part: Call
    ) -> Tensor:
        # They take their norms as arguments, so that recomputation includes the norms.
        attention_TD: Tensor = self.attention(x_TD, self.input_layernorm, rotation, documents, cache, run_part)
        mlp_TD: Tensor = self.mlp(x_TD, self.post_attention_layernorm, run_part)
        return self._sum(x_TD, attention_TD, mlp_TD)

    def _sum(self, x_TD: Tensor, attention_TD: Tensor, mlp_TD: Tensor) -> Tensor:
        return x_TD + attention_TD + mlp_TD  # in this order, both sums are fp32 under autocast


class Trunk(nn.Module):
    """Embedding, blocks and the final layer norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class NeoX(LanguageModel):
    """A GPT-NeoX language model."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: ActivationCheckpointing = "none") -> None:
        super().__init__(config, activation_checkpointing=activation_checkpointing)
        self.gpt_neox = Trunk(config)
        self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """The matrix that turns hidden states into logits."""
        return self.embed_out.weight

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Scores of every vocabulary row as the next token."""
        logits_TV: Tensor = self.embed_out(hidden_TD)
        return logits_TV

    def forward(
        self,
        input_ids_T: Tensor,
        documents: Documents,
        cache: KVCache | None = None,
        noise: EmbeddingNoise | None = None,
    ) -> Tensor:
        """Hidden states after the final layer norm; with a cache, the tokens continue the sequence in it."""
        num_before = cache.num_tokens if cache is not None else 0
        if cache is not None and len(documents.lengths) > 1:
            raise DataError(f"{len(documents.lengths)} documents for a cache, which continues one")
        self._check(input_ids_T, documents, num_before)
        rotation = rotary_table(self.config, documents.positions_T.device)
        cos, sin = (table_LG[documents.positions_T + num_before][:, None, None] for table_LG in rotation)
        x_TD = self.gpt_neox.embed_in(input_ids_T)
        if noise is not None:
            x_TD = noise.added_to(x_TD)
        run_block, run_part = runners(self.activation_checkpointing if torch.is_grad_enabled() else "none")
        for block in self._blocks():
            x_TD = run_block(block, x_TD, (cos, sin), documents, cache, run_part)
        if cache is not None:
            cache.advance(documents.num_tokens)
        hidden_TD: Tensor = self.gpt_neox.final_layer_norm(x_TD)
        return hidden_TD

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Fill the weights for training from scratch.

        Biases are 0, norms 1, weights normal. The two layers that write to the residual stream start smaller by
        √(2 · layers), the number of such writes, so that its size does not grow with depth.
        """
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                writes = name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight"))
                scale = std / (2 * self.config.num_layers) ** 0.5 if writes else std
                fresh = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                parameter.copy_(fresh.normal_(0.0, scale, generator=generator))

    @property
    def flops_per_token(self) -> int:
        """Six per weight of a matrix product: two in the forward pass, four in the backward pass."""
        shape = self.config
        block = shape.hidden_size * (4 * shape.hidden_size + 2 * shape.intermediate_size)
        return 6 * (shape.vocab_size * shape.hidden_size + shape.num_layers * block)

    @property
    def flops_per_pair(self) -> int:
        """Two products of a head's size, in all heads: with the keys and with the values."""
        return 6 * 2 * self.config.num_layers * self.config.hidden_size

    def adapter_layers(self) -> Iterator[tuple[nn.Module, str]]:
        """The two linear layers of attention and of the MLP, block by block."""
        for block in self._blocks():
            yield from ((block.attention, name) for name in ("query_key_value", "dense"))
            yield from ((block.mlp, name) for name in ("dense_h_to_4h", "dense_4h_to_h"))

    def compiled_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """Everything in a block but attention itself."""
        for block in self._blocks():
            yield from ((block.attention, "_heads"), (block.attention, "_out"), (block.mlp, "forward"), (block, "_sum"))

    def linear_modules(self) -> Iterator[nn.Module]:
        """Attention and MLP of each block; they get their norms as arguments."""
        for block in self._blocks():
            yield from (block.attention, block.mlp)

    def gate_layers(self) -> dict[str, str]:
        """The first layer of the first attention, and the last layer of the last MLP."""
        last = self.config.num_layers - 1
        return {
            "first attention": "gpt_neox.layers.0.attention.query_key_value",
            "last MLP": f"gpt_neox.layers.{last}.mlp.dense_4h_to_h",
        }

    def _blocks(self) -> Iterator[Block]:
        return cast(Iterator[Block], iter(self.gpt_neox.layers))

    def _check(self, input_ids_T: Tensor, documents: Documents, num_before: int) -> None:
        if documents.num_tokens != input_ids_T.shape[0]:
            raise DataError(f"documents of {documents.num_tokens} tokens for a row of {input_ids_T.shape[0]}")
        longest, limit = num_before + documents.max_len, self.config.max_positions
        if longest > limit:
            raise DataError(f"a document of {longest} tokens for a model with {limit} positions")


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + G/2) of the first G dimensions by their angles, in fp32, and leave the rest."""
    cos, sin = rotation
    half = cos.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin)  # fp32 tables make these products fp32
    return torch.cat((*(part.to(heads.dtype) for part in turned), rest), dim=-1)


@lru_cache(maxsize=8)
def rotary_table(config: ModelConfig, device: torch.device) -> Rotation:
    """Cosine and sine of every position's angles.

    Shapes: two of (L, G / 2), fp32.
    """
    exponents_G = torch.arange(0, config.rotary_dims, 2, dtype=torch.float32, device="cpu") / config.rotary_dims
    positions_L = torch.arange(config.max_positions, dtype=torch.float32, device="cpu")
    angles_LG = positions_L[:, None] * (1.0 / config.rotary_base**exponents_G)
    return angles_LG.cos().to(device), angles_LG.sin().to(device)
