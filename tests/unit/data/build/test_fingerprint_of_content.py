"""What names a data set is what is in it: what is said about it, and how it is shown, changes no name."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.data.build.build import build
from sft.data.build.fingerprint import code_digest
from sft.data.build.writer import REPORT
from sft.data.inspect.verify import verify
from sft.data.shards import Shards
from sft.data.sources.recipe import load_mixture
from sft.errors import DataError

ROOT = Path(__file__).parents[4]
SAMPLE_DIGESTS = {
    "train-00000-of-00001.arrow": "343bd5de4334d49d2cd7f56ef06ff5cf6cccd466e7b6f92f65689b90d4355d7c",
    "valid-00000-of-00001.arrow": "97d23c57faa136a58eab7ff40b1e0f4ea78ede14bd3aa13f4f5d42f08b8d9a33",
}
"""The shards of the sample mixture, packed to 1024 with the small tokenizer of the tests."""


@pytest.fixture
def shards(write_mixture: Callable[..., Any]) -> Shards:
    raw = write_mixture(talks=[["no answer"], *([f"question {n}", f"answer {n}"] for n in range(20))])
    return build(raw.config(), raw.recipes)


def test_the_bundled_rows_become_the_same_bytes_as_ever(tokenizer_file: Path, tmp_path: Path) -> None:
    recipes = ROOT / "data_recipes"
    settings = [f"sources_dir={recipes / 'sample'}", f"tokenizer={tokenizer_file}", f"out={tmp_path / 'shards'}"]
    config = load_mixture(recipes / "mixtures" / "sample.yaml", [*settings, "seq_len=1024", "workers=1"]).config
    folder = build(config, recipes).folder
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SAMPLE_DIGESTS}
    assert found == SAMPLE_DIGESTS


WORDS_ABOUT_IT: dict[str, Callable[[Path], object]] = {
    "deleted report": lambda folder: (folder / REPORT).unlink(),
    "edited report": lambda folder: (folder / REPORT).write_text("<p>seen by Jo"),
    "deleted card": lambda folder: (folder / "README.md").unlink(),
    "edited card": lambda folder: (folder / "README.md").write_text("# Ours"),
    "an added note": lambda folder: (folder / "notes.txt").write_text("used in run 7"),
}


@pytest.mark.parametrize("change", WORDS_ABOUT_IT.values(), ids=WORDS_ABOUT_IT)
def test_words_about_a_build_stop_nobody_who_reads_it_and_verify_tells(
    change: Callable[[Path], object], shards: Shards
) -> None:
    change(shards.folder)
    opened = Shards.open(shards.folder)
    assert opened.manifest.content_digest == shards.manifest.content_digest
    assert sum(len(pack.doc_ids_N) for pack in opened.split("train")) == 19
    with pytest.raises(DataError, match=r"report\.html|README\.md|notes\.txt"):
        verify(shards.folder)


def test_another_report_and_card_make_no_other_data_set(
    write_mixture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_mixture(talks=[["no answer"], *([f"question {n}", f"answer {n}"] for n in range(20))])
    first = build(raw.config(), raw.recipes)
    monkeypatch.setattr("sft.data.build.writer.data_card", lambda *_: "another card")
    monkeypatch.setattr("sft.data.build.writer.page", lambda *_: "another report")
    again = build(raw.config(f"out={first.folder}-again"), raw.recipes)
    assert again.manifest.content_digest == first.manifest.content_digest
    assert again.manifest.files != first.manifest.files


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the program's own code."""
    copied = tmp_path / "sft"
    shutil.copytree(ROOT / "sft", copied)
    return copied


@pytest.mark.parametrize(
    "name", ["inspect/show", "inspect/lineage", "report/html", "report/dataset_card", "batches/sampler", "sources/hub"]
)
def test_the_code_of_a_viewer_decides_no_bytes(name: str, package: Path) -> None:
    before = code_digest(package)
    (package / "data" / f"{name}.py").write_text("something = 'else'\n")
    assert code_digest(package) == before


@pytest.mark.parametrize(
    "name", ["hashing.py", "chat/encode.py", "data/filters/mojibake.py", "data/build/packing.py", "data/build/chunk.py"]
)
def test_the_code_that_makes_the_bytes_counts_but_its_comments_do_not(name: str, package: Path) -> None:
    before, path = code_digest(package), package / name
    path.write_text('"""Another docstring."""\n# A comment.\n\n' + path.read_text() + "\n# Another one.\n")
    assert code_digest(package) == before
    path.write_text(path.read_text() + "something = 'else'\n")
    assert code_digest(package) != before
