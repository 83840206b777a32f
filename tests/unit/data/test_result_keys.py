"""What a build counts of a source is known as a result, not taken for a setting."""

from collections.abc import Callable
from typing import Any

import pytest

from sft.data.build import writer
from sft.data.build.build import build
from sft.data.result_keys import RESULT_KEYS


def test_the_result_keys_are_those_that_a_build_records(
    write_mixture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[set[str]] = []
    facts_of = writer._source_facts

    def observed(*arguments: Any) -> dict[str, Any]:
        facts = facts_of(*arguments)
        recorded.append(set(facts))
        return facts

    monkeypatch.setattr(writer, "_source_facts", observed)
    raw = write_mixture(talks=[[f"q {n}", f"a {n}"] for n in range(4)])
    build(raw.config(), raw.recipes)
    assert recorded == [RESULT_KEYS]
