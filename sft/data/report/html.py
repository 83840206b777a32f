"""The HTML report of a build: counts, dropped rows, lengths, packing, licenses, and a browser of packs.

It is part of the build, so equal builds give equal pages: it holds no time, host name or path.
"""

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from sft.chat.tokenizer import ChatTokenizer
from sft.data.documents import DocumentTable
from sft.data.manifest import BuildManifest, SourceFacts
from sft.data.report.histogram import Histogram, log_edges, log_histogram, share_histogram
from sft.data.report.licenses import consequences, source_licenses
from sft.data.report.pack_browser import MAX_BYTES, Contents, PackTexts, choose, visible
from sft.data.shards import Shards
from sft.errors import ConfigError
from sft.storage.atomic import write_text

TEMPLATE = Path(__file__).with_name("report.html")
MAX_EXAMPLES, MAX_EXAMPLE_CHARACTERS = 3, 400
_COUNTED = {"rows_read", "rows_skipped", "rows_kept", "rows_dropped", "documents", "held_out_documents", "tokens"}
_IN_NO_TABLE = ("split", "truncated", "distinct_conversations")
_SHOWN_ELSEWHERE = {"title", "license", "commercial"}

PackNumbers = Sequence[tuple[str, int]]
"""Packs by split and number, from 0."""


def report(folder: Path, packs_per_source: int = 8, packs: PackNumbers = ()) -> str:
    """The report of a published build, with about `packs_per_source` packs of each source and the named packs.

    Raises: DataError if the build is damaged, ConfigError if a pack does not exist.
    """
    shards = Shards.open(folder, check_hashes=False)
    return page(shards, ChatTokenizer.load(shards.tokenizer_path), packs_per_source, packs)


def write_report(folder: Path, out: Path, packs_per_source: int = 8, packs: PackNumbers = ()) -> None:
    """Write the report of a published build to a file.

    Raises: ConfigError if the file would be inside the build, or exists and is not an HTML file.
    """
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("lies in the build, whose files are fixed", on=out, hint="name a file elsewhere")
    if out.exists() and out.suffix not in (".html", ".htm"):
        raise ConfigError("exists and is no HTML file", on=out, hint="name a new file, such as packs.html")
    write_text(out, report(folder, packs_per_source, packs))


def page(shards: Shards, tokenizer: ChatTokenizer, packs_per_source: int = 8, packs: PackNumbers = ()) -> str:
    """The report of a build; its manifest file may not be written yet, as only `shards.manifest` is used."""
    manifest, table = shards.manifest, shards.documents
    contents = {name: Contents.of(shards.split(name)) for name in manifest.splits}
    licenses = source_licenses(manifest.sources)
    source = TEMPLATE.read_text(encoding="utf-8")
    return (
        _environment()
        .from_string(source)
        .render(
            manifest=manifest,
            sources=_sources(manifest),
            reason_hues=_hues(sorted({reason for facts in manifest.sources.values() for reason in facts.reasons}), 20),
            total={key: sum(getattr(facts, key) for facts in manifest.sources.values()) for key in _COUNTED},
            examples=_examples(shards.quarantine()),
            documents=list(_document_charts(table)),
            packing=list(_packing_charts(contents, shards.seq_len)),
            licenses=licenses,
            consequences=consequences(licenses),
            details={name: _details(facts) for name, facts in manifest.sources.items()},
            browser=_browser(shards, tokenizer, contents, packs_per_source, packs),
            script_hash=_script_hash(source),
        )
    )


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": "{:,}".format, "share": _share, "visible": visible, "plain": _plain}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _script_hash(source: str) -> str:
    """The hash of the page's only script for its Content-Security-Policy, so that no other script can run."""
    script = source.split("<script>")[1].split("</script>")[0]
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _plain(value: Any) -> str:
    """A setting as a user writes it."""
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _sources(manifest: BuildManifest) -> list[dict[str, Any]]:
    """Sources in the order of the build, each with a hue of its own."""
    hues = _hues(manifest.sources, 230)
    return [{"name": name, "hue": hues[name], **facts.to_json()} for name, facts in manifest.sources.items()]


def _hues(names: Iterable[str], first: int) -> dict[str, int]:
    """Hues as different as possible, in degrees of the colour circle."""
    ordered = list(names)
    return {name: (first + 360 * number // len(ordered)) % 360 for number, name in enumerate(ordered)}


def _examples(quarantine: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The first few rows dropped from each source for each reason."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in quarantine:
        group = found[record["source"], record["reason"]]
        if len(group) < MAX_EXAMPLES:
            group.append({key: _cut(value) for key, value in record.items()})
    return dict(found)


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return visible(value[:MAX_EXAMPLE_CHARACTERS]) if isinstance(value, str) else value


def _document_charts(table: DocumentTable) -> Iterator[dict[str, Any]]:
    """Lengths and supervised shares of the documents of every source, on one scale."""
    if not len(table):
        return
    edges = log_edges(int(table.num_tokens.min()), int(table.num_tokens.max()))
    for number, name in enumerate(table.sources):
        mine = table.source == number
        tokens, supervised = table.num_tokens[mine], table.num_supervised[mine]
        if len(tokens):
            yield {
                "source": name,
                "count": len(tokens),
                "quantiles": _quantiles(tokens),
                "lengths": log_histogram(tokens, edges, "tokens", "documents"),
                "shares": share_histogram(supervised, tokens, "of the tokens with loss", "documents"),
            }


def _quantiles(values: NDArray[Any]) -> dict[str, int]:
    ordered = np.sort(values)
    places = {"shortest": 0, "median": (len(values) - 1) // 2, "95 % up to": (len(values) - 1) * 19 // 20}
    return {name: int(ordered[place]) for name, place in (places | {"longest": -1}).items()}


def _packing_charts(contents: dict[str, Contents], seq_len: int) -> Iterator[tuple[str, Histogram, Histogram]]:
    """Padding and documents per pack of every split that has packs."""
    for name, split in contents.items():
        if len(split.num_tokens_P):
            padding, documents = seq_len - split.num_tokens_P, split.num_documents_P
            edges = log_edges(int(documents.min()), int(documents.max()))
            yield (
                name,
                log_histogram(padding, log_edges(0, int(padding.max())), "tokens of padding", "packs"),
                log_histogram(documents, edges, "documents", "packs"),
            )


def _details(facts: SourceFacts) -> dict[str, Any]:
    """The facts about a source in the manifest that no table shows."""
    settings = {key: value for key, value in facts.settings.items() if key not in _SHOWN_ELSEWHERE}
    return settings | {key: getattr(facts, key) for key in _IN_NO_TABLE}


def _browser(
    shards: Shards,
    tokenizer: ChatTokenizer,
    contents: dict[str, Contents],
    packs_per_source: int,
    packs: PackNumbers,
) -> dict[str, Any]:
    """Packs of every split as the page's script reads them."""
    table, names = shards.documents, list(contents)
    chosen = {
        name: set(choose(split, table.source, packs_per_source, MAX_BYTES // len(names)))
        for name, split in contents.items()
    }
    for name, index in packs:
        if name not in chosen or not 0 <= index < len(contents[name].num_tokens_P):
            known = ", ".join(f"{len(split.num_tokens_P)} of {name}" for name, split in contents.items())
            raise ConfigError(f"no pack {index} of {name!r}: there are {known}, numbered from 0", on=shards.folder)
        chosen[name].add(index)
    splits = {name: shards.split(name) for name in names}
    texts = PackTexts(shards, tokenizer, (splits[name][index] for name in names for index in sorted(chosen[name])))
    return {
        "sources": list(map(visible, table.sources)),
        "files": list(map(visible, table.files)),
        "splits": {
            name: {
                "packs": len(splits[name]),
                "shown": [texts.facts(index, splits[name][index]) for index in sorted(chosen[name])],
            }
            for name in names
        },
    }
