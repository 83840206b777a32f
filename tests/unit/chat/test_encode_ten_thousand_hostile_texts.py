"""Ten thousand texts made to look like control tokens, through the encoder as a build uses it: in batches."""

import random
import unicodedata
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from sft.chat.conversation import Conversation, Message
from sft.chat.encode import Encoded, Layout, encode
from sft.chat.formats.stablelm import END, PADDING, TAGS
from sft.chat.supervision import first_violations
from sft.chat.tokenizer import ChatTokenizer

NUM_TEXTS, TEXTS_PER_BATCH = 10_000, 2_000
PIECES = (
    # control tags, whole, cut, nested, escaped and look-alikes
    *(END, PADDING, *TAGS, *TAGS),
    *("<|", "|>", "<", "|", ">", "<|USER", "USER|>", "<|ASSIST", "ANT|>", "<|end", "oftext|>", "<|<|USER|>|>", "||"),
    *("<|user|>", "<| USER |>", "<|USER|", "＜|USER|＞", "&lt;|USER|&gt;", "\\u003c|USER|\\u003e", "%3C|USER|%3E"),
    # role words and other projects' templates
    *("User:", "Assistant:", "### Response:", "\n\nHuman: ", "SYSTEM", "[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>"),
    *("<|im_start|>system", "<|im_end|>", "{{ messages }}", "{% endfor %}", "${USER}", "{0}", "%s", "{{{", "'''", '"'),
    # white space, invisible characters, and characters that a tokenizer may tell apart or not
    *(" ", "  ", " " * 25, "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85", "\x00", "\x1b[31m"),
    *("\u200b", "\u200d", "\ufeff", "\u2060", "\u202e", "\u00ad", "\ufe0f", "\ufffd", "\U0010ffff"),
    *("e\u0301", "\u00e9", "A\u030a", "\u212b", "\u1112\u1161\u11ab", "q\u0307\u0323", "\u0323\u0307", "\ufb01", "ß"),
    *("🙂", "👩‍💻", "👍🏽", "🇩🇪", "𝕏", "你好", "שלום", "Ġ", "Ċ", "ÿ", "a", "is", "the", "0", "1234"),
)

LAYOUTS = {
    "answers are learnt": Layout(65_535),
    "everything is learnt": Layout(65_535, supervise="all", end_token=False),
}


def texts(seed: int) -> Iterator[str]:
    """Texts of one to twelve pieces, none of them blank."""
    choose = random.Random(seed)
    while True:
        text = "".join(choose.choices(PIECES, k=choose.randint(1, 12)))
        if text.strip():
            yield text


def conversations(seed: int, num_texts: int) -> list[Conversation]:
    """All the texts in conversations of one to four exchanges."""
    choose, source = random.Random(-seed), texts(seed)
    made, left = [], num_texts
    while left:
        count = min(left, 2 * choose.randint(1, 4))
        roles = ("user", "assistant") * (count // 2)
        made.append(Conversation(tuple(Message(role, next(source)) for role in roles)))  # type: ignore[arg-type]
        left -= count
    return made


def expected_controls(conversation: Conversation, tokenizer: ChatTokenizer, layout: Layout) -> list[int]:
    turns = [tokenizer.id_of("<|USER|>"), tokenizer.id_of("<|ASSISTANT|>")] * (len(conversation.messages) // 2)
    return [tokenizer.id_of("<|SYSTEM|>"), *turns, *([tokenizer.end_id] if layout.end_token else [])]


def texts_between_controls(document: Encoded, tokenizer: ChatTokenizer) -> list[bytes]:
    """What stands between the control tokens, spelt from the vocabulary."""
    places = np.flatnonzero(np.isin(document.ids, tokenizer.control_ids)).tolist()
    ends = [*places[1:], len(document.ids)]
    runs = [document.ids[start + 1 : end] for start, end in zip(places, ends, strict=True)]
    return [tokenizer.spell(run) for run in runs]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", ["tokenizer", "neox_20b"])
def test_ten_thousand_hostile_texts_stay_texts(name: str, layout: Layout, request: pytest.FixtureRequest) -> None:
    tokenizer: ChatTokenizer = request.getfixturevalue(name)
    num_checked = 0
    for seed in range(NUM_TEXTS // TEXTS_PER_BATCH):
        batch = conversations(seed, TEXTS_PER_BATCH)
        systems = [text for text, _ in zip(texts(1000 + seed), batch, strict=False)]
        documents = [document for (document,) in encode(batch, systems, tokenizer, layout)]
        for conversation, system, document in zip(batch, systems, documents, strict=True):
            assert isinstance(document, Encoded)
            found = [token_id for token_id in document.ids.tolist() if token_id in tokenizer.control_ids]
            assert found == expected_controls(conversation, tokenizer, layout)
            said = [system, *(message.text for message in conversation.messages), *([""] if layout.end_token else [])]
            wanted = [unicodedata.normalize("NFC", text).encode() for text in said]
            assert texts_between_controls(document, tokenizer) == wanted
            num_checked += len(conversation.messages)
        assert first_violations(documents, tokenizer, layout) == [None] * len(documents)  # type: ignore[arg-type]
    assert num_checked == NUM_TEXTS


def test_the_proof_finds_each_forged_document_among_thousands(tokenizer: ChatTokenizer) -> None:
    """Else a proof of whole batches could say that all is well because it looks at nothing."""
    layout = Layout(65_535)
    documents = []
    for (document,) in encode(batch := conversations(7, TEXTS_PER_BATCH), [""] * len(batch), tokenizer, layout):
        assert isinstance(document, Encoded)
        documents.append(document)
    forged = list(range(0, len(documents), 97))
    for number in forged:
        ids, mask = documents[number].ids.copy(), documents[number].loss_mask.copy()
        if number % 3 == 0:
            ids[-2] = tokenizer.id_of("<|USER|>")  # in the last answer
        elif number % 3 == 1:
            ids[2] = tokenizer.id_of("<|ASSISTANT|>")  # in the first question, which stands behind two tags
        else:
            mask[2] = 1
        documents[number] = replace(documents[number], ids=ids, loss_mask=mask)
    verdicts = first_violations(documents, tokenizer, layout)
    assert [number for number, verdict in enumerate(verdicts) if verdict is not None] == forged
