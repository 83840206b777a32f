"""Every recipe keeps the promises that its cases.jsonl lists, one row and one expectation per line.

A case may name switches of the recipe that are on; its expectation names the system text if the recipe sets one.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.chat.conversation import Conversation, Drop
from sft.data.sources.recipe import Convert, load_converter

RECIPES = Path(__file__).parents[2] / "data_recipes"
SOURCES = sorted(path.parent.name for path in RECIPES.glob("*/recipe.yaml"))
# How many kinds of dirt a recipe knows; its cases show each of them.
NUM_REASONS = {"alpaca": 6, "dolly": 3, "gpt4all": 3, "hh": 5, "sharegpt": 6}


def read_cases(source: str) -> list[dict[str, Any]]:
    lines = (RECIPES / source / "cases.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def as_expectation(outcome: Conversation | Drop) -> dict[str, Any]:
    if isinstance(outcome, Drop):
        return {"drop": outcome.reason.value}
    messages = [[message.role, message.text] for message in outcome.messages]
    return {"messages": messages} | ({} if outcome.system is None else {"system": outcome.system})


def switches_of(source: str) -> list[str]:
    parameters = inspect.signature(load_converter(RECIPES / source)).parameters.values()
    return [item.name for item in parameters if item.kind is item.KEYWORD_ONLY]


ALL = [pytest.param(source, case, id=f"{source}: {case['case']}") for source in SOURCES for case in read_cases(source)]


@pytest.mark.parametrize(("source", "case"), ALL)
def test_case(source: str, case: dict[str, Any], convert_of: Callable[..., Convert]) -> None:
    assert all(case.get("switches", {}).values())
    convert = convert_of(source, *case.get("switches", {}))
    assert as_expectation(convert(case["row"])) == case["expect"]


@pytest.mark.parametrize("source", SOURCES)
def test_every_recipe_has_twenty_cases_with_names_of_their_own(source: str) -> None:
    names = [case["case"] for case in read_cases(source)]
    assert len(set(names)) == len(names) >= 20


@pytest.mark.parametrize("source", SOURCES)
def test_cases_show_every_kind_of_dirt_and_clean_rows(source: str) -> None:
    expectations = [case["expect"] for case in read_cases(source) if "switches" not in case]
    reasons = {expect["drop"] for expect in expectations if "drop" in expect}
    assert len(reasons) >= NUM_REASONS.get(source, 2)
    assert sum("messages" in expect for expect in expectations) >= 8


def test_every_recipe_is_covered() -> None:
    assert set(NUM_REASONS) <= set(SOURCES)


SWITCHES = [(source, switch) for source in SOURCES for switch in switches_of(source)]


@pytest.mark.parametrize(("source", "switch"), SWITCHES)
def test_four_cases_show_what_a_switch_alone_changes(
    source: str, switch: str, convert_of: Callable[..., Convert]
) -> None:
    cases = [case for case in read_cases(source) if list(case.get("switches", {})) == [switch]]
    assert sum(as_expectation(convert_of(source)(case["row"])) != case["expect"] for case in cases) >= 4


@pytest.mark.parametrize(("source", "switch"), SWITCHES)
def test_a_switch_is_off_unless_named(source: str, switch: str) -> None:
    assert inspect.signature(load_converter(RECIPES / source)).parameters[switch].default is False


@pytest.mark.parametrize(("source", "switch"), SWITCHES)
def test_readme_explains_every_switch(source: str, switch: str) -> None:
    assert f"`{switch}`" in (RECIPES / source / "README.md").read_text(encoding="utf-8")
