"""Near-duplicate search against datasketch: cost per conversation, pairs found, recall. Prints a table, writes JSON.

    python tests/bench/near_duplicates.py --tokenizer tokenizer.json --out near_duplicates.json \
        --rows alpaca=alpaca.jsonl.gz --rows dolly=dolly.jsonl.gz

Each `--rows` names a recipe and a file of its raw rows. Needs `pip install datasketch`. Times are CPU seconds of one
process, the least of three passes.
"""

import argparse
import gzip
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasketch
import numpy as np
from table import facts, show, write

from sft.chat.conversation import Conversation
from sft.chat.tokenizer import ChatTokenizer
from sft.data.dedup.minhash import NUM_BANDS, ROWS_PER_BAND, Shingles, shingles, signatures
from sft.data.dedup.near_duplicates import near_duplicates
from sft.data.sources.recipe import load_converter
from sft.data.words import split_words

RECIPES = Path(__file__).parents[2] / "data_recipes"
THRESHOLD = 0.8
Texts = Sequence[str]


def conversations(recipe: str, path: Path) -> list[Texts]:
    convert = load_converter(RECIPES / recipe)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        converted = [convert(json.loads(line)) for line in lines]
    return [[message.text for message in kept.messages] for kept in converted if isinstance(kept, Conversation)]


def cpu_s(work: Callable[[], Any], passes: int = 3) -> float:
    times = []
    for _ in range(passes):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def runs_of_five(texts: Texts) -> list[bytes]:
    words = split_words("\n".join(texts))
    return [" ".join(words[place : place + 5]).encode() for place in range(max(1, len(words) - 4))]


def library_sketches(sample: Sequence[Texts]) -> list[datasketch.MinHash]:
    """By the library's own fast way for many sets, which draws the permutations once."""
    return list(datasketch.MinHash.bulk(map(runs_of_five, sample), num_perm=NUM_BANDS * ROWS_PER_BAND))


def library_pairs(sketches: Sequence[datasketch.MinHash]) -> list[tuple[int, int]]:
    index = datasketch.MinHashLSH(num_perm=NUM_BANDS * ROWS_PER_BAND, params=(NUM_BANDS, ROWS_PER_BAND))
    pairs = []
    for number, sketch in enumerate(sketches):
        pairs += [(int(other), number) for other in index.query(sketch)]
        index.insert(number, sketch)
    return pairs


def own_pairs(bands: np.ndarray) -> set[tuple[int, int]]:
    pairs: set[tuple[int, int]] = set()
    for column in bands.T:
        buckets = defaultdict(list)
        for number, band in enumerate(column.tolist()):
            buckets[band].append(number)
        pairs.update(pair for bucket in buckets.values() for pair in combinations(bucket, 2))
    return pairs


def own_drops(all_texts: Sequence[Texts], bands: np.ndarray) -> int:
    thresholds, alive = np.full(len(bands), THRESHOLD, np.float32), np.ones(len(bands), bool)
    return len(
        near_duplicates(len(bands), lambda b: bands[:, b].copy(), thresholds, lambda i: shingles(all_texts[i]), alive)
    )


def cost(name: str, sample: Sequence[Texts], tokenizer: ChatTokenizer) -> dict[str, Any]:
    turns = [text for texts in sample for text in texts]
    batches = [turns[start : start + 1000] for start in range(0, len(turns), 1000)]
    tokenizing_s = cpu_s(lambda: [tokenizer.encode(batch) for batch in batches])
    own_s = cpu_s(lambda: signatures(sample))
    library_s = cpu_s(lambda: library_sketches(sample))
    return {"source": name, "conversations": len(sample)} | {
        f"{what}_us": round(seconds / len(sample) * 1e6, 1)
        for what, seconds in (("tokenizing", tokenizing_s), ("own", own_s), ("library", library_s))
    }


def edited(texts: Texts, rng: random.Random) -> Texts:
    """The same turns with up to 5 % of the words replaced, which keeps a similarity of some 0.6 to 1."""
    share = rng.uniform(0, 0.05)
    return [
        " ".join(f"new{rng.randrange(10**6)}" if rng.random() < share else word for word in text.split())
        for text in texts
    ]


def similar_pairs(sets: Sequence[Shingles]) -> set[tuple[int, int]]:
    """All pairs at or above the threshold, by counting common shingles of the whole texts of all pairs."""
    holders: defaultdict[int, list[int]] = defaultdict(list)
    common = Counter[tuple[int, int]]()
    for number, one in enumerate(sets):
        for hashed in one.all.tolist():
            common.update((other, number) for other in holders[hashed])
            holders[hashed].append(number)
    sizes = [len(one.all) for one in sets]
    return {(a, b) for (a, b), both in common.items() if both / (sizes[a] + sizes[b] - both) >= THRESHOLD}


def recall(all_texts: Sequence[Texts]) -> dict[str, Any]:
    rng = random.Random(0)
    sample = rng.sample(list(all_texts), min(2700, len(all_texts)))
    sample += [edited(texts, rng) for texts in rng.sample(sample, len(sample) // 9)]
    true = similar_pairs([shingles(texts) for texts in sample])
    own = own_pairs(signatures(sample))
    library = set(library_pairs(library_sketches(sample)))
    found = {name: len(true & pairs) / len(true) for name, pairs in (("own", own), ("library", library))}
    return {"conversations": len(sample), "similar_pairs": len(true)} | {
        f"{name}_recall": round(share, 4) for name, share in found.items()
    }


def total(all_texts: Sequence[Texts]) -> dict[str, Any]:
    bands, sketches = signatures(all_texts), library_sketches(all_texts)
    return {
        "conversations": len(all_texts),
        "own_search_s": round(cpu_s(lambda: own_drops(all_texts, bands), 1), 2),
        "library_search_s": round(cpu_s(lambda: library_pairs(sketches), 1), 2),
        "own_candidate_pairs": len(own_pairs(bands)),
        "library_candidate_pairs": len(library_pairs(sketches)),
        "dropped": own_drops(all_texts, bands),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", action="append", required=True, metavar="RECIPE=FILE")
    parser.add_argument("--sample", type=int, default=2000, help="conversations per source that are timed")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    figures = facts("numpy", "tokenizers", "datasketch")
    tokenizer = ChatTokenizer.load(arguments.tokenizer)
    costs, all_texts = [], []
    for recipe, _, path in (rows.partition("=") for rows in arguments.rows):
        texts = conversations(recipe, Path(path))
        row = cost(recipe, texts[: arguments.sample], tokenizer)
        costs.append(
            row | {f"{who}_share": round(row[f"{who}_us"] / row["tokenizing_us"], 3) for who in ("own", "library")}
        )
        all_texts += texts
    result = {
        **figures,
        "threshold": THRESHOLD,
        "cost": costs,
        "recall": recall(all_texts),
        "total": total(all_texts),
    }
    show("Signature, CPU time per conversation in us and as a share of tokenizing", costs)
    show("Recall of pairs, against all pairs counted", [result["recall"]])
    show("Search", [result["total"]])
    write(arguments.out, result)


if __name__ == "__main__":
    main()
