"""Look at packs in the terminal: roles, loss, documents, and where each token came from."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft.chat.tokenizer import ChatTokenizer
from sft.data.shards import Pack, Shards
from sft.errors import ConfigError

ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "end": "red", "padding": "dim"}


def overview(folder: Path, console: Console) -> None:
    """Print the splits and sources of a build and why rows were dropped."""
    shards = Shards.open(folder, check_hashes=False)
    manifest = shards.manifest
    line = f"{manifest['name']}  {folder}  content {manifest['content_digest'][:12]}"
    console.print(line, style="bold", markup=False, highlight=False, soft_wrap=True)
    splits = Table("split", "packs", "documents", "tokens", "supervised", "density")
    for name, facts in manifest["splits"].items():
        share = facts["supervised_tokens"] / max(1, facts["tokens"])
        counts = (f"{facts[key]:,}" for key in ("packs", "documents", "tokens"))
        splits.add_row(name, *counts, f"{share:.1%}", f"{facts['density']:.3%}")
    console.print(splits)
    sources = Table("source", "rows", "kept", "documents", "tokens", "supervised")
    for name, facts in manifest["sources"].items():
        share = facts["supervised_tokens"] / max(1, facts["tokens"])
        counts = (f"{facts[key]:,}" for key in ("rows_read", "rows_kept", "documents", "tokens"))
        sources.add_row(name, *counts, f"{share:.1%}")
    console.print(sources)
    for name, facts in manifest["sources"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in facts["reasons"].items())
        skipped = f"; {facts['rows_skipped']:,} left out by weight" if facts["rows_skipped"] else ""
        console.print(f"dropped from {name}: {reasons or 'nothing'}{skipped}", highlight=False, soft_wrap=True)


def show_pack(folder: Path, split: str, index: int, console: Console) -> None:
    """Print one pack, document by document: roles in colour, tokens with loss underlined."""
    shards = Shards.open(folder, check_hashes=False)
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    pack = _pack(shards, split, index)
    console.print(
        f"[bold]{split} pack {index}[/]: {len(pack.doc_ids_D)} documents, "
        f"{pack.num_tokens} of {shards.seq_len} tokens, {pack.num_supervised} with loss (underlined)"
    )
    for number, (doc_id, place) in enumerate(pack.documents()):
        title = f"{number}: {_origin(shards, doc_id)}, tokens {place.start}–{place.stop - 1}"
        console.rule(Text(title), align="left")
        console.print(Text.assemble(*_coloured(pack.input_ids_T[place], pack.loss_mask_T[place], tokenizer)))


def trace(folder: Path, split: str, index: int, token: int, console: Console) -> None:
    """Print the raw row from which a token of a pack came."""
    shards = Shards.open(folder, check_hashes=False)
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    pack = _pack(shards, split, index)
    for doc_id, place in pack.documents():
        if place.start <= token < place.stop:
            spelling = tokenizer.decode([[int(pack.input_ids_T[token])]])[0]
            loss = "with loss" if pack.loss_mask_T[token] else "without loss"
            line = f"token {token}: {spelling!r} (id {pack.input_ids_T[token]}), {loss}, document {doc_id}"
            console.print(f"{line}\nfrom {_origin(shards, doc_id)}", markup=False, soft_wrap=True)
            return
    raise ConfigError(f"token {token} of {split} pack {index} is padding or outside; it holds {pack.num_tokens}")


def _pack(shards: Shards, split: str, index: int) -> Pack:
    packs = shards.split(split)
    if not 0 <= index < len(packs):
        raise ConfigError(f"no pack {index} in {split}: it holds {len(packs)}, numbered from 0", on=shards.folder)
    return packs[index]


def _origin(shards: Shards, doc_id: int) -> str:
    table = shards.documents
    source, file = table.sources[table.source[doc_id]], table.files[table.file[doc_id]]
    piece = f", piece {table.piece[doc_id]}" if table.piece[doc_id] else ""
    return f"{source}: {file}, row {table.row[doc_id]}{piece}"


def _coloured(ids: np.ndarray, mask: np.ndarray, tokenizer: ChatTokenizer) -> Iterator[tuple[str, str]]:
    """Runs of tokens of one role and one mask value, as (text, style)."""
    tags = {tokenizer.system_id: "system", tokenizer.user_id: "user", tokenizer.assistant_id: "assistant"}
    role = "system"
    roles = []
    for token_id in ids.tolist():
        role = tags.get(token_id, role)
        roles.append("end" if token_id == tokenizer.end_id else role)
    edges = [0, *(i for i in range(1, len(ids)) if (roles[i], mask[i]) != (roles[i - 1], mask[i - 1])), len(ids)]
    for start, end in itertools.pairwise(edges):
        style = ROLE_STYLES[roles[start]] + (" underline" if mask[start] else "")
        yield tokenizer.decode([ids[start:end]])[0], style
