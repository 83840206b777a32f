"""The role (system, user, assistant) of each token."""

import itertools
from typing import Any

from numpy.typing import NDArray

from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import marker_starts

END = "end"


def role_of(number: int) -> str:
    """The role of text `number` of a document; the system text is number 0."""
    return "system" if number == 0 else ("user" if number % 2 else "assistant")


def roles(ids_T: NDArray[Any], starts: NDArray[Any], tokenizer: ChatTokenizer) -> list[str]:
    """The role of each token of a document; a marker has the role of the text after it, an end token the role `END`."""
    edges = [0, *marker_starts(starts, tokenizer)[1:], len(ids_T)]
    named: list[str] = []
    for number, (begin, stop) in enumerate(itertools.pairwise(edges)):
        named += [role_of(number)] * (stop - begin)
    return [END if is_end else role for is_end, role in zip(ids_T == tokenizer.end_id, named, strict=True)]
