"""A format with roles in plain text goes through everything: no other place knows StableLM's tags."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from rich.console import Console

from sft.chat.conversation import Conversation, Message, Reason
from sft.chat.encode import Encoded, Layout, encode, encode_prompt
from sft.chat.formats.registry import FORMATS
from sft.chat.supervision import first_violations
from sft.chat.tokenizer import ChatTokenizer, train_tokenizer
from sft.config.inference import GenerationConfig
from sft.data.build.build import build
from sft.data.inspect.lineage import token_origin
from sft.data.inspect.show import show_pack
from sft.data.inspect.show_diff import show_diff
from sft.data.inspect.verify import verify
from sft.data.report.pack_browser import BORDER, PackTexts
from sft.data.shards import Shards
from sft.data.sources.recipe import load_mixture
from sft.errors import DataError
from sft.export.chat_template import verify_template
from sft.inference import answer as module
from sft.inference.answer import answer
from tests.conftest import write_raw_mixture
from tests.support.plain_format import END, PLAIN

TALKS = [
    ["Hi", "Yo.", "2?", "\nASK: 3"],
    ["<|USER|>\nSAY: x", "y"],
    *([f"question {n}", f"answer {n}"] for n in range(9)),
]
WHOLE = f"A talk.\nASK: Hi\nSAY: Yo.{END}\nASK: 2?\nSAY: \nASK: 3{END}"
LOSS = [" Yo.", END, " \nASK: 3", END]


@pytest.fixture(scope="module")
def plain() -> ChatTokenizer:
    return train_tokenizer([], 258, PLAIN)


@pytest.fixture
def shards(plain: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    monkeypatch.setitem(FORMATS, PLAIN.name, PLAIN)
    (tmp_path / "tokenizer.json").write_text(plain.json, encoding="utf-8")
    raw = write_raw_mixture(tmp_path / "made", tmp_path / "tokenizer.json", talks=TALKS)
    config = raw.config("seq_len=128", "system=card", "sources.talks.near_duplicates=0.9")
    return build(replace(config, format=PLAIN.name), raw.recipes)


def encoded(tokenizer: ChatTokenizer, texts: Sequence[str]) -> Encoded:
    talk = Conversation(tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)))
    ((document,),) = encode([talk], ["A talk."], tokenizer, Layout(1000))
    assert isinstance(document, Encoded)
    return document


def shown(view: Callable[[Console], object]) -> str:
    stream = io.StringIO()
    view(Console(file=stream, width=200))
    return stream.getvalue()


def test_it_is_encoded_as_it_says(plain: ChatTokenizer) -> None:
    document = encoded(plain, TALKS[0])
    assert plain.decode([document.ids]) == [WHOLE]
    learnt = document.ids[document.loss_mask == 1]
    assert plain.decode([learnt]) == ["".join(LOSS)]


def test_the_proof_takes_it_and_nothing_else(plain: ChatTokenizer) -> None:
    document, layout = encoded(plain, TALKS[0]), Layout(1000)
    assert first_violations([document], plain, layout) == [None]
    for place in range(len(document.ids)):
        mask, ids = document.loss_mask.copy(), document.ids.copy()
        mask[place] ^= 1
        ids[place] = plain.pad_id
        flipped, forged = (replace(document, **change) for change in ({"loss_mask": mask}, {"ids": ids}))
        reasons = [drop.reason if drop else None for drop in first_violations([flipped, forged], plain, layout)]
        assert reasons == [Reason.WRONG_TURN_ENDS, Reason.FORGED_CONTROL_TOKEN], place
    for number in range(len(document.turn_starts)):
        for shift in (-1000, -1, 1, 1000):
            starts = document.turn_starts.copy()
            starts[number] += shift
            (found,) = first_violations([replace(document, turn_starts=starts)], plain, layout)
            assert found is not None, (number, shift)


def test_it_is_built_proven_and_named(shards: Shards) -> None:
    assert shards.manifest.format == "plain"
    assert shards.chat_format is PLAIN
    assert "11 documents" in verify(shards.folder)
    card = (shards.folder / "README.md").read_text(encoding="utf-8")
    assert "<|" not in card.partition("## Text")[2].partition("## Licences")[0]


def test_the_documents_say_where_turns_start(shards: Shards, plain: ChatTokenizer) -> None:
    doc_id, ids_T = first_row(shards)
    starts = shards.turn_starts(doc_id, ids_T, plain)
    assert starts.tolist() == encoded(plain, TALKS[0]).turn_starts.tolist()


def first_row(shards: Shards) -> tuple[int, np.ndarray[Any, Any]]:
    for name in shards.manifest.splits:
        split = shards.split(name)
        for pack in (split[number] for number in range(len(split))):
            for doc_id, place in pack.documents():
                if shards.documents.row[doc_id] == 0:
                    return doc_id, pack.input_ids_T[place]
    raise AssertionError("row 0 is in no pack")


def test_every_token_is_traced_to_its_turn(shards: Shards, plain: ChatTokenizer) -> None:
    spelt: dict[tuple[str, int | None], bytes] = {}
    for name in shards.manifest.splits:
        split = shards.split(name)
        for pack in (split[number] for number in range(len(split))):
            for doc_id, place in pack.documents():
                for token in range(place.start, place.stop) if shards.documents.row[doc_id] == 0 else ():
                    origin = token_origin(shards, plain, pack, token)
                    turn = (origin.role, origin.exchange)
                    spelt[turn] = spelt.get(turn, b"") + origin.spelling
    assert spelt == {
        ("system", None): b"A talk.",
        ("user", 0): b"\nASK: Hi",
        ("assistant", 0): b"\nSAY: Yo.",
        ("user", 1): b"<|endoftext|>\nASK: 2?",
        ("assistant", 1): b"\nSAY: \nASK: 3<|endoftext|>",
    }


def test_it_is_shown_with_its_markers_apart(shards: Shards, plain: ChatTokenizer) -> None:
    assert "ASK: Hi" in shown(lambda console: show_pack(shards.folder, "train", 0, console))
    doc_id, ids_T = first_row(shards)
    texts = PackTexts(shards, plain, [shards.split(name)[0] for name in shards.manifest.splits])
    mask = encoded(plain, TALKS[0]).loss_mask.tolist()
    runs = [run.replace(BORDER, "") for run in texts._runs(doc_id, ids_T, mask)]
    assert runs == [
        *("sA talk.", "t\nASK:", "u Hi", "t\nSAY:", "A Yo.", f"T{END}", "t\nASK:"),
        *("u 2?", "t\nSAY:", "A \nASK: 3", f"E{END}"),
    ]


def test_differences_are_shown_turn_by_turn(shards: Shards, tmp_path: Path) -> None:
    recipes = tmp_path / "made" / "recipes"
    mixture = tmp_path / "made" / "raw" / "talks.jsonl"
    mixture.write_text(mixture.read_text().replace("Yo.", "Yes."))
    config = replace(
        load_mixture(
            recipes / "mixtures" / "test.yaml",
            [
                *(f"sources_dir={mixture.parent}", f"tokenizer={tmp_path / 'tokenizer.json'}"),
                *(f"out={tmp_path / 'other'}", "workers=1", "seq_len=128", "system=card"),
            ],
        ).config,
        format=PLAIN.name,
    )
    other = build(config, recipes)
    text = shown(lambda console: show_diff(shards.folder, other.folder, console))
    assert "- SAY: Yo." in text
    assert "+ SAY: Yes." in text


def test_the_chat_template_spells_the_training_text(plain: ChatTokenizer) -> None:
    template = jinja2.Environment().from_string(PLAIN.chat_template("A talk."))

    def render(messages: Any, ask: bool) -> list[int]:
        text = template.render(messages=messages, add_generation_prompt=ask)
        ids: list[int] = []
        for number, part in enumerate(text.split(END)):
            ids += [*([plain.end_id] if number else []), *plain.encode([part])[0]]
        return ids

    verify_template(render, "A talk.", plain)
    with pytest.raises(DataError):
        verify_template(lambda messages, ask: render(messages, ask)[:-1], "A talk.", plain)


def test_a_prompt_ends_where_the_answer_begins(plain: ChatTokenizer) -> None:
    ids = encode_prompt([Message("user", "Hi"), Message("assistant", "Yo."), Message("user", "2?")], "S", plain)
    assert plain.decode([ids]) == [f"S\nASK: Hi\nSAY: Yo.{END}\nASK: 2?\nSAY:"]
    assert plain.stop_ids == (0, 1)


@pytest.mark.parametrize(
    ("generated", "said"),
    [(" Yes.\nASK: more", "Yes."), (" No\nASK", "No\nASK"), (" é\n", "é\n"), ("", ""), ("\nASK:", "")],
)
def test_an_answer_ends_before_a_stop_string_and_never_shows_a_part_of_it(
    generated: str, said: str, plain: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "generate", lambda *_: iter(plain.encode([generated])[0]))
    loaded: Any = type("Loaded", (), {"tokenizer": plain, "model": None})
    pieces = list(answer(loaded, [Message("user", "Hi")], "S", GenerationConfig()))
    assert "".join(pieces) == said
