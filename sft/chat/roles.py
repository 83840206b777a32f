"""Whose turn a token belongs to."""

from collections.abc import Iterable, Iterator

from sft.chat.tokenizer import ChatTokenizer

END = "end"


def role_tags(tokenizer: ChatTokenizer) -> dict[int, str]:
    """The role that each tag's token id begins."""
    return {tokenizer.system_id: "system", tokenizer.user_id: "user", tokenizer.assistant_id: "assistant"}


def roles(ids: Iterable[int], tokenizer: ChatTokenizer) -> Iterator[str]:
    """The role of each token of a document, a tag being its role's; of an end token `END`."""
    tags, role = role_tags(tokenizer), "system"
    for token_id in ids:
        role = tags.get(token_id, role)
        yield END if token_id == tokenizer.end_id else role
