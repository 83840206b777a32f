"""How fast each tokenizer backend is on one core, and whether its ids are the reference's.

    python tests/bench/tokenizer.py --tokenizer 20B_tokenizer.json --rows FOLDER --out tokenizer.json

FOLDER holds raw rows as .jsonl or .jsonl.gz; every text in them that has a blank is encoded. Use many different real
texts: a few that are repeated flatter a backend that remembers words. Every measurement runs in a process of its own,
so that its first pass is cold; the backends take turns, and the best of the repetitions counts.
"""

import argparse
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from table import facts, show, write

Texts = list[str]
Ids = tuple[Any, Any] | None
"""All ids end to end and how many each text has, or nothing if the ids are not read."""
Encode = Callable[[Texts], Ids]

CHUNK_TEXTS = 1000
PASSES = ("cold", "warm")


def flat(runs: list[list[int]]) -> Ids:
    lengths = np.fromiter(map(len, runs), np.int64, len(runs))
    return np.fromiter(chain.from_iterable(runs), np.uint32, int(lengths.sum())), lengths


def reference(tokenizer_json: str, read: bool = True) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True

    def encode(texts: Texts) -> Ids:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return flat([encoding.ids for encoding in encodings]) if read else None

    return encode


def reference_unread(tokenizer_json: str) -> Encode:
    return reference(tokenizer_json, read=False)


def fastokens(tokenizer_json: str) -> Encode:
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_json_str(tokenizer_json)

    def encode(texts: Texts) -> Ids:
        ids, offsets = tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.int64))

    return encode


def gigatoken(tokenizer_json: str) -> Encode:
    from gigatoken import Tokenizer

    tokenizer = Tokenizer.from_json(without_special_tokens(tokenizer_json))

    def encode(texts: Texts) -> Ids:
        layout = tokenizer.encode_batch(texts, parallel=False).layout
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    return encode


def tokie(tokenizer_json: str) -> Encode:
    from tokie import Tokenizer

    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(without_special_tokens(tokenizer_json))
        file.flush()
        tokenizer = Tokenizer.from_json(file.name)
    return lambda texts: flat([item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)])


def without_special_tokens(tokenizer_json: str) -> str:
    """For libraries that cannot be told to read the text of a special token as text."""
    content = json.loads(tokenizer_json)
    content["added_tokens"] = [entry for entry in content["added_tokens"] if not entry["special"]]
    return json.dumps(content)


BACKENDS: dict[str, tuple[str, Callable[[str], Encode]]] = {
    "tokenizers": ("tokenizers", reference),
    "tokenizers, ids not read": ("tokenizers", reference_unread),
    "fastokens": ("fastokens", fastokens),
    "gigatoken": ("gigatoken", gigatoken),
    "tokie": ("tokie", tokie),
}
REFERENCE = "tokenizers"


def texts_below(folder: Path, max_texts: int) -> Texts:
    found: Texts = []
    for path in sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.gz")]):
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                found += (text.encode("utf-8", "ignore").decode() for text in strings(json.loads(line)) if " " in text)
                if len(found) >= max_texts:
                    return found[:max_texts]
    return found


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def measure(build: Callable[[str], Encode], tokenizer_json: str, texts: Texts, num_passes: int, to: Connection) -> None:
    """Send the seconds of each pass, the number of ids and a digest of them."""
    chunks = [texts[start : start + CHUNK_TEXTS] for start in range(0, len(texts), CHUNK_TEXTS)]
    # Touching every text copies the pages that are shared with the parent, which would be timed otherwise.
    sum(len(text) for text in texts)
    encode = build(tokenizer_json)
    seconds, num_ids, digest = [], 0, hashlib.sha256()
    for number in range(num_passes):
        spent = 0.0
        for chunk in chunks:
            start = time.perf_counter()
            encoded = encode(chunk)
            spent += time.perf_counter() - start
            if encoded is not None and number == 0:
                num_ids += len(encoded[0])
                digest.update(encoded[0].astype(np.uint32).tobytes() + encoded[1].astype(np.int64).tobytes())
        seconds.append(spent)
    to.send((seconds, num_ids, digest.hexdigest()))


def in_own_process(*arguments: Any) -> tuple[list[float], int, str]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(*arguments, there))
    process.start()
    there.close()
    result: tuple[list[float], int, str] = here.recv()
    process.join()
    return result


def compare(tokenizer_json: str, texts: Texts, repetitions: int) -> list[dict[str, Any]]:
    names = [name for name, (package, _) in BACKENDS.items() if importlib.util.find_spec(package)]
    for name in BACKENDS.keys() - names:
        print(f"skipped: {name} is not installed", file=sys.stderr)
    results: dict[str, list[tuple[list[float], int, str]]] = {name: [] for name in names}
    for _ in range(repetitions):
        for name in names:
            # The reference remembers too little for a second pass to differ.
            num_passes = 1 if BACKENDS[name][0] == REFERENCE else 2
            results[name].append(in_own_process(BACKENDS[name][1], tokenizer_json, texts, num_passes))
    _, num_ids, digest = results[REFERENCE][0]
    slowest = min(seconds[0] for seconds, _, _ in results[REFERENCE])
    rows = []
    for name, runs in results.items():
        row: dict[str, Any] = {"backend": name, "version": importlib.metadata.version(BACKENDS[name][0])}
        for number, label in enumerate(PASSES):
            best = min((seconds[number] for seconds, _, _ in runs if number < len(seconds)), default=None)
            row[f"{label}_mtok_per_s"] = best and num_ids / best / 1e6
            row[f"{label}_x_reference"] = best and slowest / best
        row["ids_equal"] = {found for _, _, found in runs} == {digest} if runs[0][1] else None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare tokenizer backends on one core.")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--rows", type=Path, help="folder of raw rows, .jsonl or .jsonl.gz")
    parser.add_argument("--max-texts", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if options.rows is None or options.tokenizer is None:
        print("skipped: needs --tokenizer FILE and --rows FOLDER with real rows", file=sys.stderr)
        return
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "FASTOKENS_BPE_THREADS": "1"}
    os.sched_setaffinity(0, {options.core})
    texts = texts_below(options.rows, options.max_texts)
    figures = facts("numpy")
    rows = compare(options.tokenizer.read_text(encoding="utf-8"), texts, options.repetitions)
    num_bytes = sum(len(text.encode()) for text in texts)
    show(f"{len(texts):,} texts of {num_bytes / 1e6:.1f} MB on one core, best of {options.repetitions}", rows)
    write(options.out, figures | {"texts": len(texts), "megabytes": num_bytes / 1e6, "backends": rows})


if __name__ == "__main__":
    main()
