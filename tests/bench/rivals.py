"""What a build is compared with, as jobs to be measured: a tokenizer alone, and a script made of libraries."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measured import Job

CHUNK_TEXTS = 1000
SEQ_LEN = 4096


def prepare_tokenizers(folder: Path, name: str) -> Job:
    """The reference library alone: tags in turns are text, in documents they are tags."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = name == "turns"
    chunks = list(_chunks(folder / f"{name}.jsonl"))

    def run() -> int:
        encoded = (tokenizer.encode_batch_fast(chunk, add_special_tokens=False) for chunk in chunks)
        return sum(len(encoding.ids) for encodings in encoded for encoding in encodings)

    return run, lambda tokens: {"tokens": tokens}


def prepare_fastokens(folder: Path) -> Job:
    """The fast library alone, on the turns."""
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_json_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    chunks = list(_chunks(folder / "turns.jsonl"))

    def run() -> int:
        encoded = (tokenizer.encode_batch_flat(chunk, split_special_tokens=True) for chunk in chunks)
        return sum(len(np.frombuffer(ids, np.uint32)) for ids, _ in encoded)

    return run, lambda tokens: {"tokens": tokens}


def _chunks(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    yield from (texts[start : start + CHUNK_TEXTS] for start in range(0, len(texts), CHUNK_TEXTS))


def prepare_peer(folder: Path, cache: Path, num_proc: int) -> Job:
    """What a training script does: load, tokenise, pack, save."""
    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    rows_file, tokenizer_file = str(folder / "documents.jsonl"), str(folder / "tokenizer.json")

    def run() -> Any:
        rows = datasets.load_dataset("json", data_files=rows_file, split="train", cache_dir=str(cache))
        encode = partial(_encode, PreTrainedTokenizerFast(tokenizer_file=tokenizer_file))
        encoded = rows.map(encode, batched=True, remove_columns=["text"], num_proc=num_proc)
        packed = pack_dataset(encoded, SEQ_LEN, strategy="bfd", map_kwargs={"num_proc": num_proc})
        packed.save_to_disk(str(cache / "packed"), num_proc=num_proc)
        return packed

    return run, _describe_peer


def _encode(tokenizer: Any, batch: dict[str, list[str]]) -> dict[str, Any]:
    ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return {"input_ids": ids}


def _describe_peer(packed: Any) -> dict[str, Any]:
    tokens = sum(map(len, packed.with_format("arrow")["input_ids"].combine_chunks().to_numpy(zero_copy_only=False)))
    return {"tokens": tokens, "density": tokens / (len(packed) * SEQ_LEN)}
