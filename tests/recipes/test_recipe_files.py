"""The patterns of the recipes find the files under their published names, and nobody else's."""

from pathlib import Path

import pytest

from sft.data.sources.files import find_files
from sft.data.sources.recipe import load_mixture

MIXTURES = (
    "sample",
    "stablelm_tuned_alpha",
    "stablelm_tuned_alpha_as_released",
    "stablelm_tuned_alpha_filtered",
)
OWNERS = {
    "alpaca_data.json": "alpaca",
    "alpaca.train.jsonl.gz": "alpaca",
    "alpaca/data/alpaca_gpt4_data.json": "alpaca",
    "alpaca/data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": "alpaca",
    "lookalike_chatalpaca.train.jsonl.gz": None,
    "databricks-dolly-15k.jsonl": "dolly",
    "dolly.train.jsonl.gz": "dolly",
    "dolly/data/train-00000-of-00001.parquet": "dolly",
    "gpt4all.jsonl.zst": "gpt4all",
    "gpt4all/data/train-00003-of-00005.parquet": "gpt4all",
    "hh_harmless_base_test.train.jsonl.gz": "hh",
    "hh/harmless-base/train.jsonl.gz": "hh",
    "hh/harmless-base/test.jsonl.gz": None,
    "hh/data/train-00000-of-00001-8349d0765e6718df.parquet": "hh",
    "hh/red-team-attempts/red_team_attempts.jsonl.gz": None,
    "ShareGPT_V3_unfiltered_cleaned_split.json": "sharegpt",
    "sg_90k_part1.json": "sharegpt",
    "sharegpt_20230401_clean_lang_split.json": "sharegpt",
    "sharegpt/sharegpt_20230401_html_unformatted/sg_90k_part2.json": "sharegpt",
    "oasst1_en_validation.train.jsonl.gz": None,
    "20B_tokenizer.json": None,
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_patterns_find_the_published_names(mixture: str, recipes: Path, tmp_path: Path) -> None:
    for name in OWNERS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    arguments = [f"sources_dir={tmp_path}", "tokenizer=tokenizer.json", "out=shards"]
    config = load_mixture(recipes / "mixtures" / f"{mixture}.yaml", arguments).config
    owners: dict[str, str | None] = dict.fromkeys(OWNERS)
    for source, recipe in config.sources.items():
        for path in find_files(tmp_path, recipe.files):
            name = path.relative_to(tmp_path).as_posix()
            assert owners[name] is None, f"{name} is claimed twice"
            owners[name] = source
    assert owners == OWNERS


@pytest.mark.parametrize("file", ["recipe.yaml", "convert.py", "cases.jsonl", "README.md"])
def test_every_recipe_is_complete(file: str, recipes: Path) -> None:
    folders = [path.parent for path in recipes.glob("*/recipe.yaml")]
    assert len(folders) >= 5
    assert all((folder / file).is_file() for folder in folders)
