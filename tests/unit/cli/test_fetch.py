"""What `sft fetch` asks for, without the hub."""

from collections.abc import Callable
from typing import Any

import pytest

from sft.cli.main import main


@pytest.fixture
def mixture(write_mixture: Callable[..., Any]) -> str:
    return str(write_mixture(alpha=[["a", "b"]]).mixture)


def test_fetching_needs_neither_a_tokenizer_nor_a_place_for_shards(
    mixture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", mixture, "sources_dir=raw", "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sources_dir: raw  # command line" in lines
    assert {"tokenizer: ''  # default", "out: ''  # default"} <= set(lines)


def test_a_line_of_settings_serves_the_build_as_well(mixture: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["sources_dir=raw", "tokenizer=t", "out=shards", "seq_len=64"]
    for command in ("fetch", "build"):
        assert main([command, mixture, *settings, "--print-config"]) == 0
        assert "seq_len: 64  # command line" in capsys.readouterr().out


def test_mistakes_are_told_as_by_a_build(mixture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", mixture]) == 78
    assert "1 mistake in the configuration\n  - sources_dir: missing" in capsys.readouterr().err
    assert main(["fetch", mixture, "sources_dir=raw", "seq_len=1", "tokenzier=t"]) == 78
    told = capsys.readouterr().err
    assert "seq_len=1: expected at least 16" in told
    assert "did you mean tokenizer?" in told
