"""The bundled rows are a small true image of the sources: each in its own schema, clean rows and dirt."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft.chat.conversation import Conversation, Drop
from sft.config.data import BuildConfig
from sft.data.filters.language import other_language
from sft.data.sources.files import find_files, read_rows
from sft.data.sources.recipe import Convert, load_mixture

SOURCES = ("alpaca", "dolly", "gpt4all", "hh", "sharegpt")


@pytest.fixture(scope="module")
def config(recipes: Path) -> BuildConfig:
    arguments = [f"sources_dir={recipes / 'sample'}", "tokenizer=tokenizer.json", "out=shards"]
    return load_mixture(recipes / "mixtures" / "sample.yaml", arguments).config


def outcomes(source: str, config: BuildConfig, convert: Convert) -> Iterator[Conversation | Drop]:
    recipe = config.sources[source]
    for path in find_files(Path(config.sources_dir), recipe.files):
        for _, row in read_rows(path, config.max_row_bytes):
            outcome = convert(json.loads(row) if isinstance(row, bytes) else row)
            dropped = isinstance(outcome, Conversation) and recipe.language and other_language(outcome, recipe.language)
            yield dropped or outcome


@pytest.mark.parametrize("source", SOURCES)
def test_source_yields_clean_rows_and_several_kinds_of_dirt(
    source: str, config: BuildConfig, convert_of: Callable[..., Convert]
) -> None:
    results = list(outcomes(source, config, convert_of(source)))
    reasons = {result.reason for result in results if isinstance(result, Drop)}
    assert sum(isinstance(result, Conversation) for result in results) >= 10
    assert len(reasons) >= 3


@pytest.mark.parametrize("source", SOURCES)
def test_dirt_stays_within_what_the_mixture_allows(
    source: str, config: BuildConfig, convert_of: Callable[..., Convert]
) -> None:
    recipe = config.sources[source]
    kinds = Counter(getattr(result, "reason", None) for result in outcomes(source, config, convert_of(source)))
    total = kinds.total()
    assert (total - kinds[None]) / total < recipe.max_drop_share
    assert kinds["wrong_schema"] / total < recipe.max_damaged_share


def test_every_file_belongs_to_one_source(config: BuildConfig) -> None:
    folder = Path(config.sources_dir)
    owned = [path for recipe in config.sources.values() for path in find_files(folder, recipe.files)]
    assert sorted(owned) == sorted(path for path in folder.iterdir() if path.suffix != ".md")


def test_a_question_has_one_answer_wherever_it_appears(config: BuildConfig, convert_of: Callable[..., Convert]) -> None:
    answers: dict[str, str] = {}
    for source in SOURCES:
        for result in outcomes(source, config, convert_of(source)):
            for question, answer in result.exchanges if isinstance(result, Conversation) else ():
                assert answers.setdefault(question, answer) == answer
    assert len(answers) >= 60


def test_a_kept_row_holds_control_tags_in_its_text(config: BuildConfig, convert_of: Callable[..., Convert]) -> None:
    texts = [
        message.text
        for result in outcomes("alpaca", config, convert_of("alpaca"))
        if isinstance(result, Conversation)
        for message in result.messages
    ]
    assert sum("<|ASSISTANT|>" in text for text in texts) == 2
