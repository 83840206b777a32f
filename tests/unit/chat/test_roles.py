"""Every token of a document has a role."""

import numpy as np

from sft.chat.roles import roles
from sft.chat.tokenizer import ChatTokenizer
from sft.chat.turns import read_turn_starts


def test_a_role_lasts_from_its_tag_to_the_next(tokenizer: ChatTokenizer) -> None:
    text, end = tokenizer.encode(["a"])[0][:1], tokenizer.end_id
    exchange = [tokenizer.id_of("<|USER|>"), *text, tokenizer.id_of("<|ASSISTANT|>"), *text, end]
    ids = np.array([*text, tokenizer.id_of("<|SYSTEM|>"), *text, *exchange, *exchange])
    assert roles(ids, read_turn_starts(ids, tokenizer), tokenizer) == [
        *["system"] * 3,
        *["user", "user", "assistant", "assistant", "end"] * 2,
    ]
