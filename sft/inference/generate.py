"""Generate token by token from one prompt.

Shape letters: V vocabulary rows that are real tokens.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sft.config.inference import GenerationConfig
from sft.errors import DataError, NumericsError
from sft.model.attention import Documents
from sft.model.base import LanguageModel
from sft.model.kv_cache import KVCache


@torch.inference_mode()
def generate(
    model: LanguageModel, prompt_ids: Sequence[int], stop_ids: Sequence[int], config: GenerationConfig, num_ids: int
) -> Iterator[int]:
    """The ids that continue a prompt, each as soon as it is known.

    Ends before the first stop id, which is not among them; after config.max_new_tokens ids; or when prompt and
    ids together fill the model's positions. Ids from `num_ids` on have no token and are never chosen. Equal
    inputs on one machine give equal ids: sampling draws from its own CPU generator.

    Raises: DataError if the prompt is empty or leaves no room for an answer; NumericsError if logits are not finite.
    """
    room = model.config.max_positions - len(prompt_ids)
    if not prompt_ids or room < 1:
        limit = model.config.max_positions
        raise DataError(f"a prompt of {len(prompt_ids)} tokens, expected 1 to {limit - 1}", hint="shorten the chat")
    generator = torch.Generator().manual_seed(config.seed)
    stops = frozenset(stop_ids)
    # The last id is never an input, so the cache needs no place for it.
    cache = KVCache(len(prompt_ids) + min(config.max_new_tokens, room) - 1)
    new_ids = list(prompt_ids)
    for _ in range(min(config.max_new_tokens, room)):
        input_ids_T = torch.tensor(new_ids, device=model.head_weight.device)
        hidden_TD = model(input_ids_T, Documents.of([len(new_ids)], input_ids_T.device), cache)
        logits_V = model.logits(hidden_TD[-1:])[0, :num_ids].float().cpu()
        if not logits_V.isfinite().all():
            raise NumericsError("the model's logits are not finite", hint="try precision=fp32, or another checkpoint")
        token_id = _choose(logits_V, config, generator)
        if token_id in stops:
            return
        yield token_id
        new_ids = [token_id]


def _choose(logits_V: Tensor, config: GenerationConfig, generator: torch.Generator) -> int:
    if config.temperature == 0:
        return int(logits_V.argmax())
    # Largest first, by a stable sort: equal logits must not be ordered by chance.
    sorted_V, ids_V = logits_V.sort(descending=True, stable=True)
    probs_V = (sorted_V / config.temperature).softmax(0)
    # A token stays if those before it do not yet reach top_p: always the first, and the one that crosses it.
    before_V = probs_V.cumsum(0) - probs_V
    kept_V = probs_V.where(before_V < config.top_p, 0.0)
    return int(ids_V[torch.multinomial(kept_V, 1, generator=generator)])
