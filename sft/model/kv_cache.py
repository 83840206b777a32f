"""Keys and values of the tokens seen so far, for generating one sequence.

Shape letters: T new tokens, K tokens in the cache, H heads, E dimensions per head.
"""

from torch import Tensor


class KVCache:
    """Room for `max_tokens` tokens in every layer, filled from the front.

    Invariant: between two forward passes every layer holds `num_tokens` tokens.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k_THE: Tensor, v_THE: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; returns all keys and values of that layer so far."""
        if layer not in self._layers:
            # The first tokens decide format and device: under autocast they differ from the weights'.
            room = (self.max_tokens, *k_THE.shape[1:])
            self._layers[layer] = (k_THE.new_empty(room), v_THE.new_empty(room))
        end = self.num_tokens + k_THE.shape[0]
        k_KHE, v_KHE = self._layers[layer]
        k_KHE[self.num_tokens : end] = k_THE
        v_KHE[self.num_tokens : end] = v_THE
        return k_KHE[:end], v_KHE[:end]

    def advance(self, num_new_tokens: int) -> None:
        """Count the new tokens, once all layers have stored theirs."""
        self.num_tokens += num_new_tokens
