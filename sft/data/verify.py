"""Proof, after the fact, that a published build keeps its whole contract."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sft.chat.conversation import Drop, Reason
from sft.chat.proof import structure_violation
from sft.chat.template import Layout
from sft.chat.tokenizer import ChatTokenizer
from sft.data.shards import Pack, Shards
from sft.errors import DataError
from sft.progress import progress

MAX_SHOWN = 10


def verify(folder: Path) -> str:
    """Check hashes, counts and the supervision contract of every document; a sentence with what was proven.

    Raises: DataError listing the first violations.
    """
    shards = Shards.open(folder)
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    settings = shards.manifest["settings"]
    layout = Layout(shards.seq_len, "drop", settings["supervise"], settings["end_token"])
    seen = np.zeros(len(shards.documents), np.uint8)
    violations: list[str] = []
    tokens = 0
    for name, facts in shards.manifest["splits"].items():
        split = shards.split(name)
        with progress(f"verify {name}", len(split), unit="packs") as advance:
            for index in range(len(split)):
                pack = split[index]
                violations += [
                    f"{name} pack {index}: {text}" for text in _pack_problems(pack, shards, tokenizer, layout)
                ]
                seen[pack.doc_ids_D] += 1
                tokens += pack.num_tokens
                advance(1, "")
        if int(split.num_supervised_N.sum()) != facts["supervised_tokens"]:
            violations.append(f"{name}: the supervised tokens are not as many as the manifest says")
    if wrong := int((seen != 1).sum()):
        violations.append(f"{wrong} documents are not in exactly one pack")
    if violations:
        shown = "\n".join(f"  - {text}" for text in violations[:MAX_SHOWN])
        raise DataError(f"{len(violations)} violations of the contract\n{shown}", on=folder, hint="build again")
    return f"{len(shards.manifest['files'])} files, {len(seen):,} documents, {tokens:,} tokens: all as they must be"


def _pack_problems(pack: Pack, shards: Shards, tokenizer: ChatTokenizer, layout: Layout) -> Iterator[str]:
    table = shards.documents
    end = pack.num_tokens
    if end > shards.seq_len:
        yield f"{end} tokens, at most {shards.seq_len}"
        return
    if pack.loss_mask_T[end:].any() or (pack.input_ids_T[end:] != tokenizer.pad_id).any():
        yield "the tail is not unsupervised padding"
    if pack.num_supervised != int(pack.loss_mask_T.sum()):
        yield "num_supervised is not the sum of the loss mask"
    for doc_id, place in pack.documents():
        ids, mask = pack.input_ids_T[place], pack.loss_mask_T[place]
        if (len(ids), int(mask.sum())) != (table.num_tokens[doc_id], table.num_supervised[doc_id]):
            yield f"document {doc_id}: its counts differ from {len(ids)} and {int(mask.sum())} in the document table"
        violation = _violation(ids, mask, tokenizer, layout)
        if violation is not None:
            yield f"document {doc_id}: {violation.reason}, {violation.detail}"


def _violation(ids: np.ndarray, mask: np.ndarray, tokenizer: ChatTokenizer, layout: Layout) -> Drop | None:
    # A full document without its end is one that the recipe truncated.
    truncated = layout.end_token and len(ids) == layout.seq_len and ids[-1] != tokenizer.end_id
    found = structure_violation(ids, mask, tokenizer, layout, truncated=truncated)
    if found is None and mask[0]:
        return Drop(Reason.WRONG_TURN_ENDS, "its first token is supervised")
    return found
