"""Show packs in the terminal: roles, loss, documents, the origin of a token, the documents of a row.

Control characters in the text of rows are escaped, so that it cannot control the terminal.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft.chat.roles import roles
from sft.chat.tokenizer import ChatTokenizer
from sft.data.build.corpus import RowId
from sft.data.inspect.lineage import (
    RowFate,
    Span,
    TokenOrigin,
    parse_place,
    place_of,
    raw_file,
    raw_row,
    row_fate,
    rows_of_packs,
    token_origin,
)
from sft.data.manifest import SourceFacts, SplitFacts
from sft.data.report.pack_browser import visible
from sft.data.shards import Pack, Shards
from sft.errors import ConfigError

ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "end": "red", "padding": "dim"}


def overview(folder: Path, console: Console) -> None:
    """Print the splits and sources of a build and why rows were dropped."""
    shards = Shards.open(folder, check_hashes=False)
    manifest = shards.manifest
    line = f"{manifest.name}  {folder}  content {manifest.content_digest[:12]}"
    print_line(console, line, "bold")
    splits = Table("split", "packs", "documents", "tokens", "supervised", "density")
    for name, split in manifest.splits.items():
        counts = (f"{count:,}" for count in (split.packs, split.documents, split.tokens))
        splits.add_row(cell(name), *counts, share_with_loss(split), f"{split.density:.3%}")
    console.print(splits)
    sources = Table("source", "rows", "kept", "documents", "tokens", "supervised")
    for name, source in manifest.sources.items():
        counts = (f"{count:,}" for count in (source.rows_read, source.rows_kept, source.documents, source.tokens))
        sources.add_row(cell(name), *counts, share_with_loss(source))
    console.print(sources)
    for name, source in manifest.sources.items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in source.reasons.items())
        cause = " or ".join(skipping(source))
        skipped = f"; {source.rows_skipped:,} left out by {cause}" if source.rows_skipped else ""
        print_line(console, f"dropped from {name}: {reasons or 'nothing'}{skipped}")


def show_pack(folder: Path, split: str, index: int, console: Console) -> None:
    """Print one pack, document by document: roles in colour, tokens with loss underlined."""
    shards = Shards.open(folder, check_hashes=False)
    tokenizer = shards.load_tokenizer()
    pack = _pack(shards, split, index)
    console.print(
        f"[bold]{split} pack {index}[/]: {len(pack.doc_ids_N)} documents, "
        f"{pack.num_tokens} of {shards.seq_len} tokens, {pack.num_supervised} with loss (underlined)"
    )
    for number, (doc_id, place) in enumerate(pack.documents()):
        title = f"{number}: {_origin(shards, doc_id)}, tokens {place.start}–{place.stop - 1}"
        console.rule(Text(visible(title)), align="left")
        ids_T = pack.input_ids_T[place]
        named = roles(ids_T, shards.turn_starts(doc_id, ids_T, tokenizer), tokenizer)
        console.print(Text.assemble(*_coloured(ids_T, pack.loss_mask_T[place], named, tokenizer)))


def trace(folder: Path, split: str, index: int, token: int, console: Console, sources_dir: Path | None = None) -> None:
    """Print the turn and the raw row of a token of a pack; the row's content too if the raw files are given."""
    shards = Shards.open(folder, check_hashes=False)
    tokenizer = shards.load_tokenizer()
    origin = token_origin(shards, tokenizer, _pack(shards, split, index), token)
    place, digest = place_of(shards, origin.doc_id), int(shards.documents.digest[origin.doc_id])
    raw = raw_row(shards, place, sources_dir) if sources_dir is not None else None
    kind = "control token, " if origin.is_control else ""
    loss = "with loss" if origin.has_loss else "without loss"
    if origin.is_control and origin.has_loss and shards.manifest.settings["supervise"] == "assistant":
        loss += ": it ends the answer before it"
    print_line(
        console, f"{split} pack {index}, token {token}: {_spelling(origin)} (id {origin.token_id}), {kind}{loss}"
    )
    print_line(console, f"  text    {_window(origin)}")
    number = "" if origin.exchange is None else f", exchange {origin.exchange} of its conversation"
    print_line(console, f"  turn    {origin.role}{number}")
    print_line(console, f"  row     {_origin(shards, origin.doc_id)} (document {origin.doc_id})")
    print_line(console, f"  digest  {digest:016x} of the conversation's turns")
    _print_raw(shards, place, raw, console)


def trace_row(folder: Path, text: str, console: Console, sources_dir: Path | None = None) -> None:
    """Print the packs of the raw row SOURCE:FILE:ROW, or why it is in none."""
    shards = Shards.open(folder, check_hashes=False)
    place = parse_place(shards, text)
    fate = row_fate(shards, place)
    raw = raw_row(shards, place, sources_dir) if sources_dir is not None else None
    print_line(console, f"{place.source}: {place.file}, row {place.row}: {_verdict(shards, fate, raw)}")
    for doc_id in fate.doc_ids:
        print_line(console, f"  {_document(shards, doc_id)}")
        for span in fate.spans:
            if span.doc_id == doc_id:
                print_line(console, f"    {span.split} pack {span.pack}, tokens {span.start}–{span.stop - 1}")
    for record in fate.dropped:
        _print_record(record, console)
    _print_raw(shards, place, raw, console)


def print_packs(shards: Shards, split: str, packs: list[int], console: Console, *, full: bool = False) -> None:
    """Print the number of documents and tokens of each source in some packs; with `full` also each document's row."""
    table, found = shards.documents, list(rows_of_packs(shards, split, packs))
    documents, tokens, supervised = Counter[int](), Counter[int](), Counter[int]()
    for span in found:
        source = int(table.source[span.doc_id])
        documents[source] += 1
        tokens[source] += span.stop - span.start
        supervised[source] += int(table.num_supervised[span.doc_id])
    summary = Table("source")
    for name in ("documents", "tokens", "share", "with loss"):
        summary.add_column(name, justify="right")
    for source in sorted(documents):
        share = f"{tokens[source] / tokens.total():.1%}"
        counts = (f"{documents[source]:,}", f"{tokens[source]:,}", share, f"{supervised[source]:,}")
        summary.add_row(cell(table.sources[source]), *counts)
    console.print(summary)
    for span in found if full else ():
        print_line(console, f"{_place(span)}: document {span.doc_id}, {_origin(shards, span.doc_id)}")


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line literally, without console markup or escape sequences."""
    console.print(Text(visible(line), style), soft_wrap=True)


def cell(text: str) -> Text:
    """A table cell with the literal text."""
    return Text(visible(text))


def _place(span: Span) -> str:
    return f"pack {span.pack}, tokens {span.start}–{span.stop - 1}"


def _spelling(origin: TokenOrigin) -> str:
    """The token's text in quotes, or its bytes if they are not whole characters."""
    try:
        return repr(origin.spelling.decode("utf-8"))
    except UnicodeDecodeError:
        return f"{origin.spelling!r}"


def _window(origin: TokenOrigin) -> str:
    """The text around a token on one line, the token between angle quotes."""
    parts = (part.decode("utf-8", "replace") for part in (origin.before, origin.spelling, origin.after))
    before, spelling, after = (one_line(part) for part in parts)
    return f"{before}»{spelling}«{after}"


def share_with_loss(facts: SourceFacts | SplitFacts) -> str:
    """The share of tokens with loss."""
    return f"{facts.supervised_tokens / max(1, facts.tokens):.1%}"


def skipping(source: SourceFacts) -> list[str]:
    """The settings by which a source leaves out rows without dropping them."""
    values = {key: source.settings[key] for key in ("weight", "num_conversations")}
    return [f"{key}={value}" for key, value in values.items() if value not in (1, None)]


def one_line(text: str) -> str:
    """Text of a row on one line, with every unprintable character escaped, such as a zero-width space."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _verdict(shards: Shards, fate: RowFate, raw: str | None) -> str:
    if fate.doc_ids:
        pieces = f"{len(fate.doc_ids)} pieces" if len(fate.doc_ids) > 1 else "1 document"
        return f"kept as {pieces}, packed {len(fate.spans)} times" if len(fate.spans) != 1 else f"kept as {pieces}"
    if fate.dropped:
        return "dropped"
    source = shards.manifest.sources[fate.place.source]
    unsure = "" if fate.is_known or raw is not None else ", or not in the file (--sources FOLDER looks)"
    return f"neither packed nor dropped: left out by {' or '.join(skipping(source))}{unsure}"


def _document(shards: Shards, doc_id: int) -> str:
    table = shards.documents
    counts = f"{table.num_tokens[doc_id]} tokens, {table.num_supervised[doc_id]} with loss"
    cut = ", truncated" if table.truncated[doc_id] else ""
    first = f"piece {table.piece[doc_id]}, from exchange {table.first_turn[doc_id]} on"
    return f"document {doc_id}: {first}, {counts}{cut}, digest {int(table.digest[doc_id]):016x}"


def _print_record(record: dict[str, Any], console: Console) -> None:
    piece = f"piece {record['piece']}: " if record["piece"] is not None else ""
    detail = f", {one_line(record['detail'])}" if record["detail"] else ""
    print_line(console, f"  {piece}{record['reason']}{detail}")
    print_line(console, f"  text    {one_line(record['excerpt'])}")
    twin = record["twin"]
    if twin:
        print_line(
            console, f"  twin    {twin['source']}:{twin['file']}:{twin['row']} (similarity {twin['similarity']})"
        )
        print_line(console, f"          {one_line(twin['excerpt'])}")


def _print_raw(shards: Shards, place: RowId, raw: str | None, console: Console) -> None:
    """Print the raw file's hash and, if it is known, the row itself."""
    print_line(console, f"  file    sha256 {raw_file(shards, place).sha256}")
    if raw is not None:
        print_line(console, f"raw row\n{raw}")


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


def _coloured(
    ids: np.ndarray, mask: np.ndarray, named: Sequence[str], tokenizer: ChatTokenizer
) -> Iterator[tuple[str, str]]:
    """Runs of tokens of one role and one mask value, as (text, style)."""
    edges = [0, *(i for i in range(1, len(ids)) if (named[i], mask[i]) != (named[i - 1], mask[i - 1])), len(ids)]
    for start, end in itertools.pairwise(edges):
        style = ROLE_STYLES[named[start]] + (" underline" if mask[start] else "")
        yield visible(tokenizer.decode([ids[start:end]])[0]), style
