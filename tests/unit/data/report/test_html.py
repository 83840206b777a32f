"""The report of a build: whole, true to the manifest, the same for equal builds, and safe to open."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sft.chat.tokenizer import ChatTokenizer
from sft.data.build.build import build
from sft.data.report.html import page, report, write_report
from sft.data.report.pack_browser import BORDER, visible
from sft.data.shards import Shards
from sft.errors import ConfigError

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</script><!-- --><style>*{display:none}</style>\u2028'\"`{{ 7*7 }}${7*7}",
    "\x1b]0;owned\x07\x1b[2J\x9b31m \u202eright to left\u202c &lt;b&gt;",
]
TALKS = {
    "alpha": [
        *((f"Question {n}?", f"Answer {n}, and {n * n} more.") for n in range(40)),
        *((t, t) for t in HOSTILE[:2]),
    ],
    "beta": [("Grüße, 你好，世界?", " ".join(["ça va"] * n)) for n in range(1, 12)],
    "rare": [("Only once?", "Yes, once.")],
}
VOID = {"meta", "br", "img", "input", "link"}


@dataclass
class Parsed(HTMLParser):
    """What a browser would see of a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def inside(self, tag: str) -> str:
        return "".join(text for place, text in self.texts if place == tag)

    @property
    def cells(self) -> list[str]:
        return [text.strip() for place, text in self.texts if place in ("td", "th", "b", "dd") and text.strip()]

    def json(self, name: str) -> Any:
        scripts = [attributes.get("id") for tag, attributes in self.tags if tag == "script"]
        texts = [text for place, text in self.texts if place == "script"]
        return json.loads(texts[scripts.index(name)])


def parsed(text: str) -> Parsed:
    reader = Parsed()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


ALPHA = {"source": "alpha", "file": "alpha.jsonl", "piece": None}
QUARANTINE = [
    {**ALPHA, "row": 100 + row, "reason": "empty_user", "detail": f"turn {row}", "excerpt": text, "twin": None}
    for row, text in enumerate([*HOSTILE, "the fourth is not shown"])
]
TWIN = {"source": "beta", "file": "beta.jsonl", "row": 3, "similarity": 0.875, "excerpt": HOSTILE[0]}
QUARANTINE.append({**ALPHA, "row": 7, "reason": "near_duplicate", "detail": "", "excerpt": "x", "twin": TWIN})


@pytest.fixture
def folder(write_mixture: Callable[..., Any]) -> Path:
    """A build of three sources with hostile rows."""
    raw = write_mixture(**{name: [list(talk) for talk in talks] for name, talks in TALKS.items()})
    return build(raw.config("sources.alpha.repair=false", "seq_len=160"), raw.recipes).folder


@pytest.fixture
def html(folder: Path) -> str:
    """Its report, with hostile rows in quarantine."""
    shards = Shards.open(folder)
    known = shards.manifest.sources
    settings, reasons = {**known["alpha"].settings, "title": HOSTILE[0]}, {"empty_user": 4, "near_duplicate": 1}
    changed = {
        "alpha": replace(known["alpha"], settings=settings, reasons=reasons),
        "beta": replace(known["beta"], changed={"repair": 12, "personal_data": 3}),
    }
    shards.manifest = replace(shards.manifest, name=HOSTILE[1], sources={**known, **changed})
    shards.quarantine = lambda: iter(QUARANTINE)  # type: ignore[method-assign]
    return page(shards, ChatTokenizer.load(shards.tokenizer_path))


@pytest.fixture
def seen(html: str) -> Parsed:
    return parsed(html)


def test_nothing_is_loaded_from_anywhere(seen: Parsed, html: str) -> None:
    for tag, attributes in seen.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "image", "use")
        assert not {"src", "srcset", "action", "formaction", "background", "poster", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = (item["content"] for tag, item in seen.tags if item.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_the_numbers_are_the_manifest_s(seen: Parsed, folder: Path) -> None:
    manifest = Shards.open(folder).manifest
    for name, facts in manifest.sources.items():
        start = seen.cells.index(name)
        keys = ("rows_read", "rows_kept", "rows_dropped", "rows_skipped", "documents", "held_out_documents", "tokens")
        assert seen.cells[start + 1 : start + 8] == [f"{getattr(facts, key):,}" for key in keys]
        assert seen.cells[start + 8] == f"{facts.supervised_tokens / facts.tokens:.1%}"
    for split in manifest.splits.values():
        start = seen.cells.index(f"{split.density:.3%}") - 4
        assert seen.cells[start : start + 3] == [f"{n:,}" for n in (split.packs, split.documents, split.tokens)]
    assert "inputs_digest" not in seen.cells
    assert any(manifest.inputs_digest in text for _, text in seen.texts)


def test_every_document_is_in_a_bar(seen: Parsed) -> None:
    titles = [text for place, text in seen.texts if place == "title"]
    lengths = [title for title in titles if "tokens: " in title and "documents" in title]
    counts = [int(title.split(": ")[1].split(" ")[0].replace(",", "")) for title in lengths]
    assert sum(counts) == sum(map(len, TALKS.values()))


def test_dropped_rows_are_shown_by_reason_with_three_examples(seen: Parsed) -> None:
    groups = [(item["data-source"], item["data-reason"]) for tag, item in seen.tags if "data-reason" in item]
    assert groups == [("alpha", "empty_user"), ("alpha", "near_duplicate")]
    examples = [text for place, text in seen.texts if place == "pre"]
    assert examples == [*map(visible, HOSTILE), "x", visible(HOSTILE[0])]
    spans = seen.inside("span")
    assert "alpha.jsonl, row 102: turn 2" in spans
    assert "like beta: beta.jsonl, row 3 (similarity 0.88)" in spans
    assert "Changed and kept: repair 12, personal data 3" in seen.inside("p")


def test_text_of_rows_cannot_become_markup_or_code(seen: Parsed, html: str) -> None:
    scripts = [attributes for tag, attributes in seen.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {"type": "application/json", "id": "hues"}, {}]
    assert not [
        tag for tag, attributes in seen.tags if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert len([tag for tag, _ in seen.tags if tag == "style"]) == 1
    assert "49" not in "".join(text for place, text in seen.texts if place == "pre")
    assert "\u2028" not in html
    assert {character for character in html if visible(character) != character} <= {BORDER}
    data = html.split('id="data">')[1].split("</script>")[0]
    assert not set("<>&") & set(data)


def test_the_browser_holds_the_texts_that_are_trained_on_with_their_lineage(html: str, folder: Path) -> None:
    data, shards = parsed(html).json("data"), Shards.open(folder)
    assert list(data["splits"]) == ["train", "valid"]
    for name, split in data["splits"].items():
        assert split["packs"] == len(shards.split(name))
        for pack in split["shown"]:
            packed = shards.split(name)[pack["index"]]
            assert pack["padding"] == 160 - packed.num_tokens
            assert len(pack["documents"]) == len(packed.doc_ids_N)
            for document in pack["documents"]:
                question, answer = TALKS[data["sources"][document["source"]]][document["row"]]
                kinds, texts = zip(*((run[0], run[1:].replace(BORDER, "")) for run in document["runs"]), strict=True)
                assert "".join(kinds) == "tstutAE"
                turns = f"<|USER|>{visible(question)}<|ASSISTANT|>{visible(answer)}"
                assert "".join(texts) == f"<|SYSTEM|>Answer shortly.{turns}<|endoftext|>"


@pytest.mark.parametrize("packs_per_source", [1, 3])
def test_every_source_is_seen_in_packs_spread_over_the_split(packs_per_source: int, folder: Path) -> None:
    data = parsed(report(folder, packs_per_source)).json("data")
    shown = [pack for split in data["splits"].values() for pack in split["shown"]]
    assert {document["source"] for pack in shown for document in pack["documents"]} == {0, 1, 2}
    numbers = [pack["index"] for pack in data["splits"]["train"]["shown"]]
    assert len(numbers) <= 3 * packs_per_source
    assert (max(numbers) == data["splits"]["train"]["packs"] - 1) or packs_per_source == 1


def test_packs_can_be_asked_for(folder: Path, tmp_path: Path) -> None:
    write_report(folder, tmp_path / "page.html", 1, [("train", 9), ("valid", 0)])
    data = parsed((tmp_path / "page.html").read_text(encoding="utf-8")).json("data")
    assert 9 in [pack["index"] for pack in data["splits"]["train"]["shown"]]
    assert 0 in [pack["index"] for pack in data["splits"]["valid"]["shown"]]


@pytest.mark.parametrize("pack", [("train", 1000), ("train", -1), ("test", 0)])
def test_a_pack_that_is_not_there_is_named(pack: tuple[str, int], folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no pack {pack[1]} of '{pack[0]}': there are \d+ of train, \d+ of valid"):
        report(folder, packs=[pack])


def test_a_published_build_is_not_added_to(folder: Path) -> None:
    with pytest.raises(ConfigError, match="whose files are fixed"):
        write_report(folder, folder / "report.html")


def test_the_page_depends_on_the_build_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert report(Path("elsewhere")) == report(folder)
    assert str(tmp_path) not in report(folder)


def test_the_page_needs_nothing_that_is_known_only_after_it(folder: Path) -> None:
    shards = Shards.open(folder)
    tokenizer = ChatTokenizer.load(shards.tokenizer_path)
    early = replace(shards.manifest, content_digest="", files={})
    assert page(Shards(folder, early), tokenizer) == page(shards, tokenizer)


def test_the_page_stays_small_for_many_packs(write_mixture: Callable[..., Any]) -> None:
    text = "<a> & </a> " * 4
    raw = write_mixture(**{name: [[f"{name} {n}", f"{text}{n}"] for n in range(2000)] for name in "abc"})
    folder = build(raw.config(), raw.recipes).folder
    assert 300_000 < len(report(folder, packs_per_source=100_000).encode("utf-8")) < 2_000_000


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "manifest.json"
    other.write_text("{}")
    with pytest.raises(ConfigError, match="exists and is no HTML file"):
        write_report(folder, other)
    assert other.read_text() == "{}"
