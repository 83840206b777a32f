"""Every token of a document has a role."""

from sft.chat.roles import roles
from sft.chat.tokenizer import ChatTokenizer


def test_a_role_lasts_from_its_tag_to_the_next(tokenizer: ChatTokenizer) -> None:
    text, end = tokenizer.encode(["a"])[0][:1], tokenizer.end_id
    exchange = [tokenizer.user_id, *text, tokenizer.assistant_id, *text, end]
    ids = [*text, tokenizer.system_id, *text, *exchange, *exchange]
    assert list(roles(ids, tokenizer)) == [
        *["system"] * 3,
        *["user", "user", "assistant", "assistant", "end"] * 2,
    ]
