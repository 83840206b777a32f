"""What the pages name exists: commands that can be parsed, settings, files, links."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from sft.config.data import BuildConfig
from sft.config.fields import unannotated
from sft.config.inference import ChatConfig, EvalConfig, ExportConfig
from sft.config.train import TrainConfig
from tests.support.docs import FENCE, ROOT, blocks, pages
from tests.support.docs_dry import REASON, calls, problems

PAGES = pages()
LANGUAGES = {"console", "sh", "text", "yaml", "python", "json"}
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]+)?\)")
SETTING = re.compile(r"(?<![\w./-])([a-z][a-z0-9_]*(?:\.[a-zA-Z0-9_]+)*)=(?!=)")
SCHEMAS = (BuildConfig, TrainConfig, EvalConfig, ChatConfig, ExportConfig)
PLACEHOLDER = "key"
"""Stands for any setting, as in `key=value`."""
PATHS = re.compile(r"(?:sft|tests|configs|data_recipes|slurm)/[\w./-]*")

of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@of_every_page
def test_every_command_that_is_not_run_can_be_parsed(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(block for block in blocks(page) if block.language == "sh"):
        assert REASON.match(block.text), f"{block}: say in its first line why it is not run"
        (tmp_path / str(number)).mkdir()
        found = calls(block, tmp_path / str(number))
        assert found, f"{block}: no command in it"
        assert [problem for words in found for problem in problems(words)] == [], block


@of_every_page
def test_no_command_hides_in_a_block_that_nobody_reads(page: Path) -> None:
    assert "```" not in FENCE.sub("", page.read_text(encoding="utf-8")), "a fence begins a line, and ends"
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: name one of {LANGUAGES}"
        if block.language not in ("console", "sh"):
            assert not re.search(r"^(\$ |sft |make |sbatch )", block.text, re.MULTILINE), block


@of_every_page
def test_every_setting_named_in_the_text_exists(page: Path) -> None:
    spans = [span for span in code_spans(page) if " " not in span or span.startswith("sft ") or SETTING.match(span)]
    unknown = {key for span in spans for key in SETTING.findall(span) if not any(_knows(s, key) for s in SCHEMAS)}
    assert unknown <= {PLACEHOLDER}


def code_spans(page: Path) -> list[str]:
    """What stands between backticks in the running text."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", page.read_text(encoding="utf-8")))


def _knows(schema: object, key: str) -> bool:
    """Whether a dotted key names a field, through groups and through mappings of any name."""
    schema, _ = unannotated(schema)
    head, _, rest = key.partition(".")
    if typing.get_origin(schema) is dict:
        return not rest or _knows(typing.get_args(schema)[1], rest)
    if not dataclasses.is_dataclass(schema):
        return not key
    hint = typing.get_type_hints(schema).get(head)
    return hint is not None and (not rest or _knows(hint, rest))


@of_every_page
def test_every_file_of_the_project_named_in_the_text_exists(page: Path) -> None:
    named = [span for span in code_spans(page) if PATHS.fullmatch(span)]
    assert [span for span in named if not (ROOT / span).exists()] == []


@of_every_page
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    broken = [
        link + anchor
        for link, anchor in links
        if not (page.parent / link).exists() or (anchor and anchor[1:] not in anchors(page.parent / link))
    ]
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What headings of a page can be linked to as, in GitHub's way."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-") for title in titles}


def test_the_scan_sees_the_pages() -> None:
    assert len(PAGES) > 15
