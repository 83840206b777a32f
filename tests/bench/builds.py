"""Builds as jobs to be measured."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from measured import Job

import sft.data.build.build
from sft.chat.tokenizer import ChatTokenizer
from sft.data.sources.recipe import load_mixture, recipes_dir


def prepare_build(mixture: Path, settings: list[str], out: Path) -> Job:
    """The build as `sft build` does it, from raw files to the published folder."""
    config = load_mixture(mixture, [*settings, f"out={out}"]).config
    stages: dict[str, float] = {}

    def run() -> Any:
        with _timed("collect_inputs", stages), _timed("publish_build", stages):
            return sft.data.build.build.build(config, recipes_dir(mixture))

    return run, lambda shards: {"stages_s": stages, **_describe(shards)}


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a stage of the build takes; what they leave of the whole is making the chunks."""
    function = getattr(sft.data.build.build, stage)

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        seconds[stage] = time.perf_counter() - start
        return result

    with patch.object(sft.data.build.build, stage, timed):
        yield


def _describe(shards: Any) -> dict[str, Any]:
    splits, sources = shards.manifest.splits, shards.manifest.sources.values()
    tokens = sum(split.tokens for split in splits.values())
    return {
        "rows": sum(source.rows_read for source in sources),
        "documents": sum(source.documents for source in sources),
        "tokens": tokens,
        "density": splits["train"].density,
        "content_digest": shards.manifest.content_digest,
    }


def prepare_inputs(mixture: Path, settings: list[str], folder: Path) -> Job:
    """A build that writes down the texts that it encodes and the documents that it makes."""
    texts: list[str] = []
    encode_flat = ChatTokenizer.encode_flat

    def recording(self: ChatTokenizer, batch: list[str]) -> Any:
        texts.extend(batch)
        return encode_flat(self, batch)

    run, _ = prepare_build(mixture, [*settings, "workers=1"], folder / "shards")

    def record() -> Any:
        with patch.object(ChatTokenizer, "encode_flat", recording):
            return run()

    return record, lambda shards: _write_inputs(folder, texts, shards)


def _write_inputs(folder: Path, texts: list[str], shards: Any) -> dict[str, Any]:
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    splits = (shards.split(name) for name in shards.manifest.splits)
    packs = (split[number] for split in splits for number in range(len(split)))
    documents = tokenizer.decode([pack.input_ids_T[place] for pack in packs for _, place in pack.documents()])
    for name, rows in (("turns", texts), ("documents", documents)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in rows)
    (folder / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    return {"turns": len(texts), **_describe(shards)}


def prepare_verify(folder: Path) -> Job:
    """The proof of a published build."""
    from sft.data.inspect.verify import verify

    return lambda: verify(folder), lambda sentence: {"proven": sentence}
