"""A format is found by its name, and nothing but its own file knows its tags."""

import re
from pathlib import Path

import pytest

from sft.chat.formats.registry import DEFAULT, format_named
from sft.chat.formats.stablelm import STABLELM
from sft.config.data import BuildConfig
from sft.errors import ConfigError

SFT = Path(__file__).parents[4] / "sft"
OWN_FILE = "chat/formats/stablelm.py"
PROBES = "chat/fast_tokenizer.py"
"""Texts on which tokenizers may differ: tags as characters, of whatever format."""


def test_a_format_is_found_by_its_name() -> None:
    assert format_named("stablelm") is STABLELM


def test_what_names_no_format_is_older_than_the_choice() -> None:
    assert format_named(None) is STABLELM
    assert BuildConfig({}, "raw", "tokenizer.json", "shards").format == DEFAULT


def test_a_name_that_is_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no chat format 'vicuna'\n.*stablelm"):
        format_named("vicuna")


def test_no_other_file_knows_the_tags() -> None:
    tags = re.compile(r"<\|(?:SYSTEM|USER|ASSISTANT)\|>|\b(?:system_id|user_id|assistant_id)\b")
    knowing = {
        path.relative_to(SFT).as_posix()
        for path in SFT.rglob("*")
        if path.suffix in (".py", ".html", ".js") and tags.search(path.read_text(encoding="utf-8"))
    }
    assert knowing == {OWN_FILE, PROBES}
