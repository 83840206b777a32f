"""Tokenizer files for tests that drive whole commands, and processes for those that lose them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sft.chat.tokenizer import train_tokenizer
from tests.support.docs import make_demo_folder
from tests.support.process import Start, starter

TEXTS = ["Name the number after it, which follows: carry out the instruction.", "0 1 2 3 4 5 6 7 8 9 10"]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer of the right form."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer(TEXTS, 400).json, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def other_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the same form and other merges."""
    path = tmp_path_factory.mktemp("other") / "tokenizer.json"
    path.write_text(train_tokenizer(["abracadabra " * 9, "hocus pocus"], 400).json, encoding="utf-8")
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one rank per life, as tests/support/process.py says."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which `sft demo` was run, and what it printed. Its tests share a worker: the group `demo`."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo_folder(folder)
