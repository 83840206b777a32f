"""No JSON object, however odd, makes a recipe raise, whatever its switches, and what it keeps is clean text."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.chat.conversation import Conversation, Drop, clean_text
from sft.data.sources.recipe import Convert

COLUMNS = {
    "alpaca": ("instruction", "input", "output", "text"),
    "dolly": ("instruction", "input", "context", "output", "response", "category"),
    "gpt4all": ("prompt", "response", "source"),
    "hh": ("prompt", "response", "chosen", "rejected"),
    "sharegpt": ("id", "conversations"),
}
FRAGMENTS = (
    "\n\nHuman: ", "\n\nAssistant:", "Human: ", "\n\n", "</s> \n \n", "<s>", "<noinput>", "No output",
    "\n3. Instruction: ", "[image]", "https://a.b/c", " summarize the article ", "[1]", " [citation needed]",
    "<|ASSISTANT|>", "\\_", "```", "1 / 1", "Copy code\n", "Share Prompt", "Too many requests in", "\u200b", "\x00",
    "\r\n", "\ud800", "word ", " ",
)  # fmt: skip
MARKUP = (
    "<div>", "</div>", "<pre>", '<code class="language-c">', "</code>", "</pre>", "<li>", '<ol start="²">', "<table>",
    "<td colspan=9999999999>", "<h99>", "<soup>", "<!--", "<![CDATA[", "&#99999999;", '<a href="x">x</a>', "<svg>",
    '<span class="katex">', "<annotation>", "<button>", "</button>", "<tr>", "</span>", "<br>", "word", "<img src=x>",
)  # fmt: skip

any_text = st.text(st.characters(exclude_categories=()), max_size=20)
odd_text = st.lists(st.sampled_from(FRAGMENTS) | any_text, max_size=8).map("".join)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | odd_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
speaker = st.sampled_from(["human", "gpt", "user", "bing", "system", "Tool"]) | any_text
page = st.lists(st.sampled_from(MARKUP), max_size=12).map(lambda tags: '<div class="markdown">' + "".join(tags))
turn = st.fixed_dictionaries({"from": speaker, "value": odd_text | page}) | json_value
answered = page.map(lambda html: [{"from": "human", "value": "q"}, {"from": "gpt", "value": html}])


def rows_shaped_like(source: str) -> st.SearchStrategy[dict[str, Any]]:
    usual = answered | st.lists(turn, max_size=5) if source == "sharegpt" else odd_text
    columns = dict.fromkeys(COLUMNS[source], usual | json_value)
    return st.fixed_dictionaries({}, optional=columns) | st.fixed_dictionaries(columns)


def variants(source: str, convert_of: Callable[..., Convert]) -> list[Convert]:
    """The recipe with no switch on, with each one alone, and with all of them."""
    parameters = inspect.signature(convert_of(source)).parameters.values()
    switches = [item.name for item in parameters if item.kind is item.KEYWORD_ONLY]
    chosen = dict.fromkeys([(), *((switch,) for switch in switches), tuple(switches)])
    return [convert_of(source, *names) for names in chosen]


def check(convert: Convert, row: dict[str, Any]) -> None:
    before = copy.deepcopy(row)
    outcome = convert(row)
    assert row == before
    assert isinstance(outcome, Conversation | Drop)
    assert outcome == convert(row)
    texts = [outcome.detail] if isinstance(outcome, Drop) else [message.text for message in outcome.messages]
    for text in texts:
        text.encode("utf-8")
    if isinstance(outcome, Conversation):
        assert all(text == clean_text(text) for text in texts)


@pytest.mark.parametrize("source", sorted(COLUMNS))
def test_any_json_object_is_kept_or_dropped(source: str, convert_of: Callable[..., Convert]) -> None:
    converts = variants(source, convert_of)

    @settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(any_text | st.sampled_from(COLUMNS[source]), json_value, max_size=4))
    def run(row: dict[str, Any]) -> None:
        for convert in converts:
            check(convert, row)

    run()


@pytest.mark.parametrize("source", sorted(COLUMNS))
def test_odd_values_in_the_right_columns_are_kept_or_dropped(source: str, convert_of: Callable[..., Convert]) -> None:
    converts = variants(source, convert_of)

    @settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(rows_shaped_like(source))
    def run(row: dict[str, Any]) -> None:
        for convert in converts:
            check(convert, row)

    run()


HOSTILE_PAGES = {
    "nested 20,000 deep": "<div>" * 20_000,
    "character number of 5,000 digits": f"&#{'9' * 5000};",
    "heading number of 5,000 digits": f"<h{'9' * 5000}>x",
    "tag named like a method of the converter": "<soup>x</soup><hN>y</hN><fn_cache>z",
    "table cell over a billion columns": '<table><tr><td colspan="1000000000">x</table>',
    "unfinished declaration": "<!DOCTYPE html [<!ENTITY x",
}


@pytest.mark.parametrize("html", HOSTILE_PAGES.values(), ids=HOSTILE_PAGES.keys())
def test_hostile_page_neither_raises_nor_grows(html: str, convert_of: Callable[..., Convert]) -> None:
    page = f'<div class="markdown prose"><p>x</p>{html}'
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": page}]}
    outcome = convert_of("sharegpt")(row)
    assert isinstance(outcome, Drop) or len(outcome.messages[1].text) <= len(page)


HOSTILE_PIECES = (
    "\n",
    " ",
    "(image ",
    "[link",
    "www.",
    "![",
    "<img ",
    "`",
    "```a",
    "1 / ",
    "Share Prompt",
    "Human: ",
    "</s>\n",
    "#",
    "-",
)


@pytest.mark.parametrize("piece", HOSTILE_PIECES)
@pytest.mark.parametrize("source", sorted(COLUMNS))
def test_long_repetition_takes_linear_time(source: str, piece: str, convert_of: Callable[..., Convert]) -> None:
    # At quadratic time this test would run for minutes.
    for text in (piece * 50_000 + "b", f"\n\nHuman: a{piece * 50_000}b"):
        turns = [{"from": name, "value": text} for name in ("human", "gpt")]
        row = {name: turns if name == "conversations" else text for name in COLUMNS[source]}
        for convert in variants(source, convert_of):
            assert isinstance(convert(row), Conversation | Drop)
