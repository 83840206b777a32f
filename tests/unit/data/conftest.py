"""Raw rows for the tests of whole builds."""

from collections.abc import Callable
from typing import Any

import pytest

from sft.data.build import build as build_module


def talks(name: str, count: int) -> list[list[str]]:
    """Conversations of one to three exchanges, every tenth a question without an answer."""
    rows = []
    for number in range(count):
        texts = [
            text for turn in range(number % 3 + 1) for text in (f"{name} {number}.{turn}?", f"answer {turn * number}")
        ]
        rows.append(texts[:1] if number % 10 == 9 else texts)
    return rows


@pytest.fixture
def raw(write_mixture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sources of 60 and 25 rows, in chunks of 7 rows."""
    monkeypatch.setattr(build_module, "ROWS_PER_CHUNK", 7)
    return write_mixture(zeta=talks("zeta", 60), alpha=talks("alpha", 25))
