"""The typed manifest is the JSON on disk, of this version and of earlier ones."""

import copy
import dataclasses
import functools
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sft.config.data import SourceConfig
from sft.data.build.build import build
from sft.data.inspect.show import overview
from sft.data.inspect.verify import verify
from sft.data.manifest import BuildManifest, SourceFacts, renamed
from sft.data.report.dataset_card import data_card
from sft.data.shards import KIND, SCHEMA_VERSION, Shards, is_content
from sft.errors import DataError, SftError
from sft.hashing import text_sha256
from sft.storage.manifest import MANIFEST, SELF, write_manifest

KEYS = (
    *("kind", "schema_version", "content_digest", "version", "made_with", "name", "settings", "evaluation_files"),
    *("tokenizer", "sources", "inputs_digest", "format", "seq_len", "splits", "files", "manifest_sha256"),
)


@pytest.fixture
def folder(write_mixture: Callable[..., Any]) -> Path:
    raw = write_mixture(talks=[["no answer"], *([f"q {n}", f"a {n}"] for n in range(9))])
    return build(raw.config(), raw.recipes).folder


def as_text(manifest: dict[str, Any]) -> str:
    """A manifest as it is written and hashed."""
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def content(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return loaded


def test_the_file_keeps_its_keys_in_their_order(folder: Path) -> None:
    found = content(folder)
    assert tuple(found) == KEYS
    settings = [field.name for field in dataclasses.fields(SourceConfig)]
    facts = [field.name for field in dataclasses.fields(SourceFacts)[1:]]
    assert list(found["sources"]["talks"]) == [*settings, *facts]
    assert found["sources"]["talks"]["rows_read"] == 10


def test_what_is_read_is_written_back_to_the_byte(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder, KIND, SCHEMA_VERSION, Shards.open(folder).manifest.to_json(), is_content)
    assert (folder / MANIFEST).read_bytes() == before


def test_a_key_of_a_later_version_is_passed_over(folder: Path) -> None:
    found = content(folder)
    expected = BuildManifest.from_json(found)
    found["weather"] = found["splits"]["train"]["weather"] = found["splits"]["train"]["shards"][0]["weather"] = "fine"
    assert BuildManifest.from_json(found) == expected
    found["sources"]["talks"]["weather"] = "fine"
    assert BuildManifest.from_json(found).sources["talks"].settings["weather"] == "fine"


@pytest.mark.parametrize("key", ["seq_len", "splits", "sources", "tokenizer"])
def test_a_missing_key_is_named(key: str, folder: Path) -> None:
    facts = Shards.open(folder).manifest.to_json()
    del facts[key]
    write_manifest(folder, KIND, SCHEMA_VERSION, facts, is_content)
    with pytest.raises(DataError, match=f"not the manifest of a build: .*{key}"):
        Shards.open(folder)


WRONG_VALUES: tuple[Any, ...] = (None, -1, 10**30, 1.5, "x", [], {}, [1], {"a": 1}, True, "../x")


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*place, key)
        yield from places(value[key], (*place, key))


def test_a_manifest_that_lies_with_true_hashes_is_refused_in_one_sentence_or_read(folder: Path) -> None:
    """300 manifests with one value missing or of another type or size, each with the right hash of itself."""
    right, rng, codes = content(folder), random.Random(0), []
    del right[SELF]
    known = list(places(right))
    for _ in range(300):
        wrong = copy.deepcopy(right)
        *parents, name = rng.choice(known)
        inside = functools.reduce(lambda value, key: value[key], parents, wrong)
        if rng.random() < 0.25:
            del inside[name]
        else:
            inside[name] = rng.choice(WRONG_VALUES)
        text = as_text(wrong)
        (folder / MANIFEST).write_text(as_text(wrong | {SELF: text_sha256(text)}))
        for look in (lambda: overview(folder, Console(file=io.StringIO())), lambda: verify(folder)):
            try:
                look()
            except SftError as error:
                codes.append(error.exit_code)
    assert set(codes) <= {65, 78}
    assert len(codes) > 200


def test_a_build_of_before_the_license_had_its_name_is_still_read(folder: Path) -> None:
    facts = Shards.open(folder).manifest.to_json()
    expected = data_card(Shards.open(folder).manifest)
    old = {("licence" if key == "license" else key): value for key, value in facts["sources"]["talks"].items()}
    write_manifest(folder, KIND, SCHEMA_VERSION, {**facts, "sources": {"talks": old}}, is_content)
    assert "licence" in (folder / MANIFEST).read_text()
    shards = Shards.open(folder)
    assert shards.manifest.sources["talks"].settings["license"] == "CC0-1.0"
    assert data_card(shards.manifest) == expected
    assert renamed(old) == facts["sources"]["talks"]
