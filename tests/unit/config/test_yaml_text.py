"""Settings in files: what cannot be read is named, and what is written reads back equal."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sft.config.data import BuildConfig
from sft.config.inference import ChatConfig, EvalConfig, ExportConfig
from sft.config.loading import Layer, load, read_arguments
from sft.config.train import TrainConfig
from sft.config.yaml_text import as_values, as_yaml, describe, read_yaml
from sft.errors import ConfigError
from tests.support.schemas import TRAIN, Inner, Schema


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


# ------------------------------------------------------------------------------------------------ files

BAD_FILES = [
    ("count: 1\ncount: 2\n", "duplicate key"),
    ("inner: {rate: 1, rate: 2}\n", "duplicate key"),
    ("- 1\n- 2\n", "expected a mapping"),
    ("a: [1\n", "not readable as YAML"),
    ("a: 1\n---\nb: 2\n", "not readable as YAML"),
    ("a: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ("a: ${nowhere}\n", "not readable as YAML"),
    ("a: ${oc.env:NO_SUCH_VARIABLE}\n", "not readable as YAML"),
    ("a: ${a}\n", "not readable as YAML"),
    ("a: \x00\n", "not readable as YAML"),
    (b"\xff\xfe\x00", "not readable as YAML"),
]


@pytest.mark.parametrize(("content", "complaint"), BAD_FILES, ids=lambda value: repr(value)[:30])
def test_a_file_that_is_no_mapping_of_settings_is_refused_by_name(
    content: str | bytes, complaint: str, yaml_file: Path
) -> None:
    yaml_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_yaml(yaml_file)
    assert str(yaml_file) in str(caught.value)


@pytest.mark.parametrize("content", ["5\n", "true\n", "2.5\n"])
def test_a_file_with_a_single_value_is_refused_by_name(content: str, yaml_file: Path) -> None:
    yaml_file.write_text(content)
    with pytest.raises(ConfigError, match="expected a mapping"):
        read_yaml(yaml_file)


@pytest.mark.parametrize("place", ["missing.yaml", "."])
def test_a_missing_file_is_named(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file") as caught:
        read_yaml(tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)


def test_an_empty_file_changes_nothing(yaml_file: Path) -> None:
    yaml_file.write_text("# nothing yet\n")
    assert read_yaml(yaml_file) == Layer(str(yaml_file), {})


def test_a_value_marked_as_missing_is_missing(yaml_file: Path) -> None:
    yaml_file.write_text("path: ???\n")
    with pytest.raises(ConfigError, match="path: missing"):
        load(Schema, [read_yaml(yaml_file)])


# ------------------------------------------------------------------------------------------------ shown and kept


def test_the_shown_config_says_where_each_value_came_from(yaml_file: Path) -> None:
    yaml_file.write_text("path: p\ninner: {rate: 2}\nwords: [a, b]\n")
    shown = describe(load(Schema, [read_yaml(yaml_file), read_arguments(["table.one.name=x", "limit=null"])]))
    assert shown.splitlines() == [
        f"path: p  # {yaml_file}",
        "count: 1  # default",
        "rate: 1.0  # default",
        "flag: false  # default",
        "limit: null  # command line",
        "label: null  # default",
        "mode: fast  # default",
        "pair:  # default",
        "- 1.0",
        "- 2.0",
        f"words:  # {yaml_file}",
        "- a",
        "- b",
        "inner:",
        f"  rate: 2.0  # {yaml_file}",
        "  name: inner  # default",
        "table:",
        "  one:",
        "    rate: 0.5  # default",
        "    name: x  # command line",
    ]


def test_a_mapping_given_whole_on_the_command_line_is_no_default() -> None:
    shown = describe(load(Schema, [Layer("a", {"path": "p"}), read_arguments(["inner={rate: 2}"])]))
    assert "  rate: 2.0  # command line" in shown


def test_the_shown_config_is_yaml_that_says_the_same() -> None:
    loaded = load(TrainConfig, [Layer("a", TRAIN)])
    assert yaml.safe_load(describe(loaded)) == yaml.safe_load(as_yaml(loaded.config))


@pytest.mark.parametrize("label", ["many words " * 20 + "end", "two\nlines"], ids=["long", "lines"])
def test_the_shown_config_is_yaml_even_with_long_texts(label: str) -> None:
    loaded = load(Schema, [Layer("a", {"path": "p", "label": label})])
    assert yaml.safe_load(describe(loaded))["label"] == label


def reloaded(schema: type, text: str, path: Path) -> Any:
    path.write_text(text, encoding="utf-8")
    return load(schema, [read_yaml(path)]).config


@pytest.mark.parametrize("schema", [TrainConfig, EvalConfig, ChatConfig, ExportConfig])
def test_a_config_written_as_yaml_reads_back_equal(schema: type, yaml_file: Path) -> None:
    config = load(schema, [Layer("a", TRAIN if schema is TrainConfig else {})]).config
    assert reloaded(schema, as_yaml(config), yaml_file) == config


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
WORDS = st.sampled_from(
    [
        "null",
        "on",
        "1e-5",
        "1_000",
        "0x10",
        "~",
        "- a",
        "a: b",
        "# x",
        "'",
        '"',
        "{",
        "2024-01-01",
        "${x}",
        "\\${",
    ]
)
CONFIGS = st.builds(
    Schema,
    path=TEXT | WORDS,
    count=st.integers(-(10**12), 10**12),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    limit=st.none() | st.integers(0, 9),
    label=st.none() | TEXT | WORDS,
    words=st.lists(TEXT | WORDS, max_size=3).map(tuple),
    inner=st.builds(Inner, rate=st.floats(0, 1), name=WORDS),
    table=st.dictionaries(st.sampled_from(["one", "two"]), st.builds(Inner)),
)


@given(config=CONFIGS)
def test_any_config_written_as_yaml_reads_back_equal(config: Schema, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "generated.yaml"
    assert reloaded(Schema, as_yaml(config), path) == config


@pytest.mark.parametrize("text", ["${HOME}", "${", "What does ${x} mean?"])
def test_a_text_with_a_dollar_sign_reads_back_equal(text: str, yaml_file: Path) -> None:
    config = Schema(path="p", words=(text,))
    assert reloaded(Schema, as_yaml(config), yaml_file) == config


def test_the_values_are_plain_json() -> None:
    config = load(TrainConfig, [Layer("a", TRAIN)]).config
    values = as_values(config)
    assert json.loads(json.dumps(values)) == values
    assert values["optimizer"]["betas"] == [0.9, 0.99]


def test_a_build_config_reads_back_equal(yaml_file: Path) -> None:
    source = {
        "title": "T",
        "hub_id": "a/b",
        "files": ["*.json"],
        "license": "CC0-1.0",
        "citation": "c",
        "system": "s\n",
    }
    values = {"sources": {"one": source, "two": {**source, "weight": 0.5}}, "sources_dir": "r", "tokenizer": "t"}
    config = load(BuildConfig, [Layer("a", {**values, "out": "o"})]).config
    assert reloaded(BuildConfig, as_yaml(config), yaml_file) == config
