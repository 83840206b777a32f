"""Tokenizers for tests of the chat layer."""

from pathlib import Path

import pytest

from sft.chat.tokenizer import ChatTokenizer, train_tokenizer

NEOX_20B = Path(__file__).parents[4] / "shared" / "data" / "20B_tokenizer.json"


@pytest.fixture(scope="session")
def letters() -> ChatTokenizer:
    """A tokenizer without merges: every byte is a token, so that layouts can be written by hand."""
    return train_tokenizer([], 261)


@pytest.fixture(scope="session")
def neox_20b() -> ChatTokenizer:
    """The published tokenizer, where a copy lies beside the repository."""
    if not NEOX_20B.is_file():
        pytest.skip(f"needs {NEOX_20B.name} in shared/data beside the repository")
    return ChatTokenizer.load(NEOX_20B)
