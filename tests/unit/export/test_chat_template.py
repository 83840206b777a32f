from collections.abc import Sequence
from typing import Any

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sft.chat.formats.stablelm import STABLELM
from sft.chat.tokenizer import ChatTokenizer
from sft.errors import DataError
from sft.export.chat_template import verify_template

Chat = Sequence[dict[str, str]]

USER = {"role": "user", "content": "u"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def rendered(chat: Chat, *, ask: bool = False, default: str = "d") -> str:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    # The environment in which transformers renders templates.
    environment: Any = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    text: str = environment.from_string(STABLELM.chat_template(default)).render(
        messages=chat, add_generation_prompt=ask
    )
    return text


@pytest.mark.parametrize(
    ("chat", "ask", "expected"),
    [
        ([USER, ASSISTANT], False, "<|SYSTEM|>d<|USER|>u<|ASSISTANT|>a<|endoftext|>"),
        ([SYSTEM, USER, ASSISTANT], False, "<|SYSTEM|>s<|USER|>u<|ASSISTANT|>a<|endoftext|>"),
        ([USER], True, "<|SYSTEM|>d<|USER|>u<|ASSISTANT|>"),
        ([USER], False, "<|SYSTEM|>d<|USER|>u"),
        ([SYSTEM, USER, ASSISTANT, USER], True, "<|SYSTEM|>s<|USER|>u<|ASSISTANT|>a<|USER|>u<|ASSISTANT|>"),
        (
            [USER, ASSISTANT, USER, ASSISTANT],
            False,
            "<|SYSTEM|>d<|USER|>u<|ASSISTANT|>a<|USER|>u<|ASSISTANT|>a<|endoftext|>",
        ),
    ],
)
def test_layout(chat: Chat, ask: bool, expected: str) -> None:
    assert rendered(chat, ask=ask) == expected


@pytest.mark.parametrize(
    ("chat", "ask"),
    [
        ([ASSISTANT], False),
        ([USER, USER], False),
        ([USER, ASSISTANT, ASSISTANT], False),
        ([SYSTEM, ASSISTANT], False),
        ([SYSTEM, SYSTEM, USER], True),
        ([USER, SYSTEM, USER], True),
        ([USER, {"role": "tool", "content": "t"}], False),
        ([USER, ASSISTANT], True),
        ([SYSTEM], True),
    ],
)
def test_chats_that_training_never_saw_are_refused(chat: Chat, ask: bool) -> None:
    with pytest.raises(jinja2.TemplateError):
        rendered(chat, ask=ask)


@pytest.mark.parametrize(
    "default",
    [
        "",
        "two\nlines\n",
        "'single' and \"double\"",
        "back\\slash \\n",
        "{{ braces }} {% x %} {# y #} -%}",
        "é 東京 🌍 \u2028",
    ],
)
def test_any_text_can_be_the_default_system_text(default: str) -> None:
    assert rendered([USER], default=default) == f"<|SYSTEM|>{default}<|USER|>u"


def test_verification_finds_a_single_wrong_token(tokenizer: ChatTokenizer) -> None:
    calls = 0

    def render(chat: Chat, ask: bool) -> list[int]:
        nonlocal calls
        calls += 1
        ids = right(chat, ask)
        return ids if calls < 7 else [*ids[:-1], ids[-1] + 1]

    def right(chat: Chat, ask: bool) -> list[int]:
        # Control tokens go in by number: the tokenizer reads texts as texts only.
        names = {name: token_id for token_id in tokenizer.control_ids for name in [tokenizer.name(token_id)]}
        ids: list[int] = []
        for piece in rendered(chat, ask=ask).replace("<|", "\0<|").replace("|>", "|>\0").split("\0"):
            ids += [names[piece]] if piece in names else tokenizer.encode([piece])[0]
        return ids

    verify_template(right, "d", tokenizer)
    with pytest.raises(DataError, match="does not spell"):
        verify_template(render, "d", tokenizer)
