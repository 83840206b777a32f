"""The tokenizer's form is checked when it is loaded, and text never becomes a control token."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models

from sft.chat import tokenizer as tokenizer_module
from sft.chat.formats.stablelm import ASSISTANT, CARD_SYSTEM_PROMPT, END, NEOX_20B_IDS, PADDING, SYSTEM, TAGS, USER
from sft.chat.tokenizer import ChatTokenizer, train_tokenizer
from sft.errors import ConfigError

ROOT = Path(__file__).parents[3]
TEXTS = ("the tide rises", "the tide falls", "the harbour fills", "how do you do?")

Edit = Callable[[dict[str, Any]], None]


def edited(tokenizer: ChatTokenizer, edit: Edit, path: Path) -> Path:
    """The tokenizer's file after a change."""
    content = json.loads(tokenizer.json)
    edit(content)
    path.write_text(json.dumps(content))
    return path


def without(*tokens: str) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] not in tokens]
        for token in tokens:
            content["model"]["vocab"].pop(token, None)

    return edit


def change(token: str, **flags: Any) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        (entry,) = (entry for entry in content["added_tokens"] if entry["content"] == token)
        entry.update(flags)

    return edit


# ------------------------------------------------------------------------------------------------ loading


def test_absent_tags_are_added_behind_the_vocabulary(letters: ChatTokenizer, tmp_path: Path) -> None:
    bare = ChatTokenizer.load(edited(letters, without(*TAGS), tmp_path / "bare.json"))
    assert bare.control_ids == letters.control_ids == (0, 1, 258, 259, 260)
    assert [bare.name(token_id) for token_id in bare.control_ids] == [END, PADDING, SYSTEM, USER, ASSISTANT]
    assert bare.num_ids == letters.num_ids == 261


def test_present_tags_keep_their_ids(tokenizer: ChatTokenizer, tokenizer_file: Path) -> None:
    loaded = ChatTokenizer.load(tokenizer_file)
    assert loaded.control_ids == tokenizer.control_ids
    assert loaded.encode(list(TEXTS)) == tokenizer.encode(list(TEXTS))


def test_a_folder_stands_for_the_file_in_it(tokenizer: ChatTokenizer, tokenizer_file: Path) -> None:
    assert ChatTokenizer.load(tokenizer_file.parent).sha256 == tokenizer.sha256
    assert ChatTokenizer.load(str(tokenizer_file)).sha256 == tokenizer.sha256


def test_the_hash_is_the_same_with_and_without_the_tags_in_the_file(letters: ChatTokenizer, tmp_path: Path) -> None:
    bare = ChatTokenizer.load(edited(letters, without(*TAGS), tmp_path / "bare.json"))
    assert bare.sha256 == letters.sha256
    assert bare.sha256 != train_tokenizer(TEXTS, 300).sha256


def test_the_hash_does_not_see_settings_that_change_no_id_here(letters: ChatTokenizer, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": PADDING,
        }

    loaded = ChatTokenizer.load(edited(letters, edit, tmp_path / "cut.json"))
    assert len(loaded.encode(["more than four letters"])[0]) == 22
    assert len(loaded.encode(["two"])[0]) == 3
    assert loaded.sha256 == letters.sha256


REFUSED: list[tuple[str, Edit, str]] = [
    ("no end", without(END), r"has no <\|endoftext\|>"),
    ("no padding", without(PADDING), r"has no <\|padding\|>"),
    *((f"{token} not special", change(token, special=False), "not marked special") for token in (END, PADDING, *TAGS)),
]


@pytest.mark.parametrize(("_", "edit", "complaint"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_a_tokenizer_that_text_could_forge_is_refused_by_name(
    _: str, edit: Edit, complaint: str, letters: ChatTokenizer, tmp_path: Path
) -> None:
    path = edited(letters, edit, tmp_path / "wrong.json")
    with pytest.raises(ConfigError, match=complaint) as caught:
        ChatTokenizer.load(path)
    assert str(path) in str(caught.value)


def test_a_tag_that_is_an_ordinary_word_of_the_vocabulary_is_refused(letters: ChatTokenizer, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        without(*TAGS)(content)
        content["model"]["vocab"][USER] = 258

    with pytest.raises(ConfigError, match="not marked special"):
        ChatTokenizer.load(edited(letters, edit, tmp_path / "word.json"))


@pytest.mark.parametrize("content", ["", "{}", "[1]", "not json", '{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not readable as a tokenizer") as caught:
        ChatTokenizer.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("place", ["missing.json", "."])
def test_a_missing_file_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such tokenizer") as caught:
        ChatTokenizer.load(tmp_path / place)
    assert str(tmp_path) in str(caught.value)


def with_holes() -> Tokenizer:
    """Some ids belong to no token, as after a token was deleted by hand."""
    tokenizer = Tokenizer(models.BPE({END: 0, PADDING: 1, "a": 5, "b": 70_000}, []))
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(PADDING, special=True)])
    return tokenizer


def test_a_vocabulary_with_holes_is_refused() -> None:
    """A new tag would get the number of tokens as its id, which another token may have already."""
    with pytest.raises(ConfigError, match=r"holes\.json: its ids have gaps"):
        ChatTokenizer(with_holes(), "holes.json")


# ------------------------------------------------------------------------------------------------ encoding


@pytest.mark.parametrize("token", [END, PADDING, *TAGS])
@pytest.mark.parametrize("frame", ["{}", " {} ", "a{}b", "{0}{0}", "\n{}\n", "<|{}|>"])
def test_the_text_of_a_control_token_is_text(token: str, frame: str, tokenizer: ChatTokenizer) -> None:
    text = frame.format(token)
    (ids,) = tokenizer.encode([text])
    assert not set(ids) & set(tokenizer.control_ids)
    assert len(ids) > len(frame.format("x")) / 2
    assert tokenizer.decode([ids]) == [text]


def test_control_tokens_are_written_out_when_decoded(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.decode([tokenizer.control_ids]) == ["".join((END, PADDING, *TAGS))]
    assert [
        name for name, is_one in zip(range(tokenizer.num_ids), tokenizer.is_control, strict=True) if is_one
    ] == sorted(tokenizer.control_ids)


def test_texts_are_encoded_each_for_itself(tokenizer: ChatTokenizer) -> None:
    together = tokenizer.encode(["the tide", " rises", ""])
    assert together == [tokenizer.encode([text])[0] for text in ("the tide", " rises", "")]
    assert together[2] == []
    assert tokenizer.encode([]) == []
    assert tokenizer.decode([]) == []


PIECES = [
    "the tide",
    " rises",
    "",
    "\n\n  ",
    "ü",
    "e\u0301",
    "你好",
    "👩‍💻",
    "<|USER|>",
    "<|endoftext|>",
    "don't",
    "  " * 13,
]


@pytest.fixture(params=["letters", "tokenizer", "neox_20b"])
def any_tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    """Each tokenizer that is there: without merges, small, and the published one."""
    found: ChatTokenizer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 30])
def test_runs_end_to_end_are_those_of_each_text(
    count: int, any_tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "_TEXTS_PER_CALL", 8)
    rng = random.Random(count)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 6))) for _ in range(count)]
    texts[:1] = [""] * min(1, count)
    runs, wanted = any_tokenizer.encode_flat(texts), any_tokenizer.encode(texts)
    assert runs.lengths.tolist() == [len(ids) for ids in wanted]
    assert runs.ids.tolist() == [token_id for ids in wanted for token_id in ids]
    assert (runs.ids.dtype, runs.lengths.dtype) == (np.uint32, np.int64)


def test_each_id_spells_what_the_library_decodes_it_to(any_tokenizer: ChatTokenizer) -> None:
    spelt = any_tokenizer.token_bytes
    assert len(spelt) == any_tokenizer.num_ids
    decoded = any_tokenizer.decode([[token_id] for token_id in range(any_tokenizer.num_ids)])
    assert [token.decode("utf-8", "replace") for token in spelt] == decoded
    single = {token for token in spelt if len(token) == 1}
    never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert single >= {bytes([byte]) for byte in range(256) if byte not in never_in_utf8}


def test_random_ids_spell_what_the_library_decodes_them_to(any_tokenizer: ChatTokenizer) -> None:
    """Halves of characters and control tokens included."""
    rng = np.random.default_rng(0)
    runs = [rng.integers(0, any_tokenizer.num_ids, length) for length in range(60)]
    runs += [rng.integers(0, 261, length) for length in range(60)]  # mostly single bytes
    runs += [rng.choice(any_tokenizer.control_ids, length) for length in range(5)]
    found = [any_tokenizer.spell(ids) for ids in runs]
    assert [text.decode("utf-8", "replace") for text in found] == any_tokenizer.decode(runs)
    assert any("\ufffd" in text for text in any_tokenizer.decode(runs))


def test_the_ids_of_a_text_spell_it(any_tokenizer: ChatTokenizer) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 6))) for _ in range(60)]
    for text, ids in zip(texts, any_tokenizer.encode(texts), strict=True):
        assert any_tokenizer.spell(np.array(ids, np.uint16)) == any_tokenizer.normalise(text).encode()


def test_two_spellings_of_one_letter_are_one(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.encode(["e\u0301"]) == tokenizer.encode(["\u00e9"])
    assert tokenizer.normalise("e\u0301") == "\u00e9"


def test_generation_stops_at_the_card_s_tokens_in_its_order(letters: ChatTokenizer) -> None:
    assert [letters.name(token_id) for token_id in letters.stop_ids] == [USER, ASSISTANT, SYSTEM, PADDING, END]


# ------------------------------------------------------------------------------------------------ the published one


def test_the_published_tokenizer_has_the_published_ids(neox_20b: ChatTokenizer) -> None:
    assert neox_20b.control_ids == (0, 1, 50277, 50278, 50279)
    assert neox_20b.num_ids == 50280
    assert neox_20b.stop_ids == (50278, 50279, 50277, 1, 0)


def test_the_card_s_prompt_has_110_tokens(neox_20b: ChatTokenizer) -> None:
    assert len(neox_20b.encode([CARD_SYSTEM_PROMPT])[0]) == 110
    assert len(neox_20b.encode([CARD_SYSTEM_PROMPT.rstrip("\n")])[0]) == 109


def test_a_tokenizer_of_the_published_size_must_have_the_published_ids() -> None:
    vocab = {PADDING: 0, END: 1, **{f"w{number}": number for number in range(2, 50277)}}
    swapped = Tokenizer(models.BPE(vocab, []))
    swapped.add_special_tokens([AddedToken(END, special=True), AddedToken(PADDING, special=True)])
    with pytest.raises(ConfigError, match="control ids") as caught:
        ChatTokenizer(swapped, "swapped.json")
    assert "'<|endoftext|>': 1" in str(caught.value)
    assert str(NEOX_20B_IDS) in str(caught.value)


# ------------------------------------------------------------------------------------------------ trained ones


@pytest.mark.parametrize("num_ids", [261, 262, 270, 280, 10_000])
def test_a_trained_tokenizer_has_at_most_the_wanted_ids(num_ids: int) -> None:
    trained = train_tokenizer(TEXTS, num_ids)
    assert trained.num_ids <= num_ids
    assert trained.num_ids == num_ids or num_ids == 10_000
    assert trained.decode(trained.encode(["Never seen: ü 你 🙂"])) == ["Never seen: ü 你 🙂"]


@pytest.mark.parametrize("num_ids", [0, 200, 260])
def test_a_trained_tokenizer_needs_room_for_every_byte_and_control_token(num_ids: int) -> None:
    with pytest.raises(ConfigError, match="expected at least 261"):
        train_tokenizer(TEXTS, num_ids)


def test_training_learns_from_the_texts() -> None:
    assert len(train_tokenizer(TEXTS, 300).encode(["the tide"])[0]) < len("the tide")


TRAIN = "import sys; from sft.chat.tokenizer import train_tokenizer; print(train_tokenizer(sys.argv[1:], 300).sha256)"


def test_equal_texts_give_an_equal_tokenizer_in_any_process() -> None:
    wanted = train_tokenizer(iter(TEXTS), 300).sha256
    for seed, threads in (("1", "1"), ("2", "3")):
        environment = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TRAIN, *TEXTS]
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == wanted
