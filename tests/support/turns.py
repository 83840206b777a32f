"""Where the answers of a document stand."""

from typing import Any

from numpy.typing import NDArray

from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import read_turn_starts, text_spans


def answer_spans(ids_T: NDArray[Any], tokenizer: ChatTokenizer) -> list[tuple[int, int]]:
    """First token, and first token behind, of each assistant text, as the ids alone tell it."""
    return text_spans(ids_T, read_turn_starts(ids_T, tokenizer), tokenizer)[2::2]
