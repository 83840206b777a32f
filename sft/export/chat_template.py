"""The chat template of an exported tokenizer, and a check that it renders the format that the model was trained on."""

from collections.abc import Callable, Iterator, Sequence

from sft.chat.conversation import Conversation, Message
from sft.chat.encode import Encoded, Layout, encode, encode_prompt
from sft.chat.tokenizer import ChatTokenizer
from sft.errors import DataError

ChatMessage = dict[str, str]
Render = Callable[[Sequence[ChatMessage], bool], list[int]]
"""Token ids of a chat; the flag adds the start of the assistant's next turn."""

_TURNS = (
    ("What's your mood today?", "Curious, thank you."),
    ("Name three rivers.", "Rhine, Nile, Mekong.", "And the longest?", "The Nile.", "Sure?", "Some say the Amazon."),
    ("Wie heißt das? 東京 é e\u0301 🌍", "„Tōkyō“ – 🗼\u200d\n\nja."),
    ("\n\n  indented\n\n", "  \n\ta list:\n\n\n- one\n-  two  \n\n"),
    ("{{ messages }} {% raw %} 'quoted' \"twice\" \\n", "{# kept #} </s> [INST] &amp; <b>"),
)
_SYSTEMS = (None, "Answer briefly.", "", " Two lines,\nthe second 'quoted' \"twice\" with {{ braces }}.\n")


def verify_template(render: Render, system: str, tokenizer: ChatTokenizer) -> None:
    """Compare what a template renders with the training encoder on conversations of every kind.

    Raises: DataError naming the first chat whose ids differ.
    """
    for own_system, conversation in _cases():
        effective = system if own_system is None else own_system
        messages = _messages(own_system, conversation.messages)
        prompt_ids = encode_prompt(conversation.messages[:-1], effective, tokenizer)
        for kind, rendered, expected in (
            ("chat", render(messages, False), _training_ids(conversation, effective, tokenizer)),
            ("prompt", render(messages[:-1], True), prompt_ids),
        ):
            if rendered != expected:
                raise DataError(
                    f"the chat template does not spell the training text of this {kind}: {messages}; "
                    f"training ids {expected}, template ids {rendered}",
                    hint="nothing was published; report this as a bug, with the tokenizer",
                )


def _cases() -> Iterator[tuple[str | None, Conversation]]:
    for system in _SYSTEMS:
        for texts in _TURNS:
            turns = [Message("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
            yield system, Conversation(tuple(turns))


def _messages(system: str | None, messages: Sequence[Message]) -> list[ChatMessage]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": message.role, "content": message.text} for message in messages]


def _training_ids(conversation: Conversation, system: str, tokenizer: ChatTokenizer) -> list[int]:
    unlimited = Layout(seq_len=1_000_000)
    ((document,),) = encode([conversation], [system], tokenizer, unlimited)
    assert isinstance(document, Encoded)  # nothing is too long here
    return [int(token_id) for token_id in document.ids]
