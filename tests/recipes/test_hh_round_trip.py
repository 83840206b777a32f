"""Conversations written in HH's format come back exactly, whatever blank lines their messages hold."""

import re
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from sft.chat.conversation import Conversation, clean_text
from sft.data.sources.recipe import Convert

PIECES = ("\n\n", "\n", "Human:", "Assistant:", "Human: ", "1. one", "two", "…", " ", "\n\nhuman: ", "\n\n- ")
TAG = re.compile(r"\n\n(Human|Assistant):(\s|$)")

message = (
    st.lists(st.sampled_from(PIECES) | st.text(max_size=8), min_size=1, max_size=8)
    .map(lambda pieces: clean_text("".join(pieces)))
    .filter(lambda text: text != "" and not TAG.search(text))
)
answer = message.filter(lambda text: not text.startswith("Human:"))  # a stray tag, which goes
conversation = st.lists(st.tuples(message, answer), min_size=1, max_size=4)


def render(exchanges: list[tuple[str, str]]) -> str:
    return "".join(f"\n\nHuman: {question}\n\nAssistant: {answer}" for question, answer in exchanges)


def test_blank_lines_inside_messages_survive_in_both_schemas(convert_of: Callable[..., Convert]) -> None:
    convert = convert_of("hh")

    @settings(max_examples=200, derandomize=True, deadline=None)
    @given(conversation)
    def run(exchanges: list[tuple[str, str]]) -> None:
        last = exchanges[-1][1]
        anthropic = convert({"chosen": render(exchanges), "rejected": "\n\nHuman: a\n\nAssistant: b"})
        prompt = render(exchanges).removesuffix(f" {last}")
        dahoas = convert({"prompt": prompt, "response": f" {last}", "chosen": f" {last}", "rejected": " b"})
        assert isinstance(anthropic, Conversation)
        assert list(anthropic.exchanges) == exchanges
        assert dahoas == anthropic

    run()
