"""A build is a pure function of its sources, recipes, settings and tokenizer, and accounts for every row."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft.chat import fast_tokenizer
from sft.data.build import build as build_module
from sft.data.build.build import build
from sft.data.shards import Shards
from sft.errors import ConfigError
from sft.storage.atomic import staging_path
from sft.storage.manifest import MANIFEST


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def built(raw: Any, *arguments: str) -> Shards:
    return build(raw.config(*arguments), raw.recipes)


def with_fast_tokenizer(raw: Any, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """A build by fastokens, every text compared with the reference."""
    compared: list[int] = []
    original = fast_tokenizer.compare

    def counting(texts: Any, encoded: Any, reference: Any, chosen: Any = None) -> None:
        compared.append(len(texts) if chosen is None else len(chosen))
        original(texts, encoded, reference, chosen)

    monkeypatch.setattr(fast_tokenizer, "compare", counting)
    shards = built(raw, f"out={raw.config().out}-fast", "tokenizer_backend=fastokens", "tokenizer_check_share=1")
    assert sum(compared) > len(fast_tokenizer.PROBES) + 100
    return shards


# ------------------------------------------------------------------------------------------------ what is built


def test_a_fast_tokenizer_does_not_change_a_byte(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastokens")
    fast = with_fast_tokenizer(raw, monkeypatch)
    assert content(fast.folder) == content(built(raw).folder)


def test_a_fast_tokenizer_that_errs_on_a_text_stops_the_build(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastokens")
    original = fast_tokenizer.FastTokenizer.encode_flat

    def err_on_one(self: Any, texts: Any) -> Any:
        ids, lengths = original(self, texts)
        wrong = np.flatnonzero([text == "zeta 30.0?" for text in texts])
        ids = ids.copy()
        ids[(np.cumsum(lengths) - lengths)[wrong]] += 1
        return ids, lengths

    monkeypatch.setattr(fast_tokenizer.FastTokenizer, "encode_flat", err_on_one)
    with pytest.raises(ConfigError, match=r"fastokens encodes 'zeta 30\.0\?'"):
        with_fast_tokenizer(raw, monkeypatch)


def test_a_build_holds_what_its_contract_names(raw: Any) -> None:
    shards = built(raw, "packs_per_shard=10")
    names = set(content(shards.folder))
    fixed = {"documents.arrow", "quarantine.jsonl", "manifest.json", "README.md", "report.html", "tokenizer.json"}
    packed = {shard.file for split in shards.manifest.splits.values() for shard in split.shards}
    assert names == fixed | packed
    assert len(packed) >= 3
    assert set(shards.manifest.splits) == {"train", "valid"}
    assert json.loads((shards.folder / MANIFEST).read_text())["schema_version"] == 4


def test_nothing_but_the_build_and_its_lock_is_left(raw: Any) -> None:
    before = set(raw.mixture.parent.parent.parent.iterdir())
    shards = built(raw)
    assert set(shards.folder.parent.iterdir()) - before == {shards.folder, shards.folder.parent / ".shards.lock"}


def test_every_row_is_a_document_or_in_quarantine(raw: Any) -> None:
    shards = built(raw)
    table = shards.documents
    for name, number_of_rows in (("alpha", 25), ("zeta", 60)):
        facts = shards.manifest.sources[name]
        mine = table.source == table.sources.index(name)
        kept = set(table.row[mine].tolist())
        dropped = {line["row"] for line in shards.quarantine() if line["source"] == name}
        assert kept | dropped == set(range(number_of_rows))
        assert not kept & dropped
        assert (facts.rows_read, facts.rows_kept, facts.rows_dropped) == (
            number_of_rows,
            len(kept),
            len(dropped),
        )
        assert facts.reasons == {"no_exchange": len(dropped)}
        assert facts.tokens == int(table.num_tokens[mine].sum())


def test_every_document_is_in_one_pack_of_its_split(raw: Any) -> None:
    shards = built(raw)
    table = shards.documents
    for name, held_out in (("train", False), ("valid", True)):
        split = shards.split(name)
        found = sorted(int(doc_id) for index in range(len(split)) for doc_id in split[index].doc_ids_N)
        assert found == np.flatnonzero(table.held_out == held_out).tolist()
        facts = shards.manifest.splits[name]
        assert facts.documents == len(found)
        assert facts.tokens == int(table.num_tokens[table.held_out == held_out].sum())
        assert facts.supervised_tokens == int(split.num_supervised_P.sum())
        assert facts.density == round(facts.tokens / (facts.packs * 64), 6)


def test_a_token_leads_back_to_its_row(raw: Any, tokenizer: Any) -> None:
    shards = built(raw)
    table, split = shards.documents, shards.split("train")
    rows = {name: (raw.sources_dir / f"{name}.jsonl").read_text().splitlines() for name in ("alpha", "zeta")}
    for index in range(0, len(split), 5):
        pack = split[index]
        for doc_id, place in pack.documents():
            turns = json.loads(rows[table.sources[table.source[doc_id]]][table.row[doc_id]])["turns"]
            (text,) = tokenizer.decode([pack.input_ids_T[place]])
            assert text.removeprefix("<|SYSTEM|>Answer shortly.<|USER|>").split("<|")[0] in turns


def test_conversations_that_open_alike_are_on_one_side(write_mixture: Callable[..., Any]) -> None:
    same = [[f"same {n}?", f"answer {n}"] for n in range(8)]
    otherwise = [[f" Same  {n}?", "another answer"] for n in range(8)]
    raw = write_mixture(one=same + otherwise + same, two=[[f"two {n}?", "yes"] for n in range(8)] + same[:3])
    keep = [f"sources.{name}.duplicates=keep" for name in ("one", "two")]
    table = built(raw, "valid_share=0.4", *keep).documents
    assert len(table) == 35
    assert len(set(table.digest.tolist())) == 24
    assert len(set(table.group.tolist())) == 16
    assert not set(table.group[table.held_out].tolist()) & set(table.group[~table.held_out].tolist())
    assert not set(table.digest[table.held_out].tolist()) & set(table.digest[~table.held_out].tolist())
    assert table.held_out.any()


def test_a_conversation_told_twice_is_built_once_and_names_its_twin(write_mixture: Callable[..., Any]) -> None:
    same = [[f"same {n}?", f"answer {n}"] for n in range(8)]
    raw = write_mixture(one=[*same, same[5], ["only a question"]], two=[["two?", "yes"], *same[:3]])
    shards = built(raw)
    table = shards.documents
    kept = {(table.sources[s], int(row)) for s, row in zip(table.source, table.row, strict=True)}
    assert kept == {("one", number) for number in range(8)} | {("two", 0)}
    lines = {(line["source"], line["row"]): line for line in shards.quarantine()}
    twins = {("one", 8): 5, ("two", 1): 0, ("two", 2): 1, ("two", 3): 2}
    assert set(lines) == {*twins, ("one", 9)}
    for place, row in twins.items():
        found = lines[place]
        assert (found["reason"], found["piece"]) == ("duplicate", None)
        assert found["excerpt"] == f"same {row}?"
        twin = {"source": "one", "file": "one.jsonl", "row": row, "similarity": 1.0, "excerpt": f"same {row}?"}
        assert found["twin"] == twin
        assert found["detail"] == f"same turns as one: one.jsonl, row {row}"
    assert lines["one", 9]["twin"] is None
    facts = {name: shards.manifest.sources[name] for name in ("one", "two")}
    assert facts["one"].reasons == {"duplicate": 1, "no_exchange": 1}
    assert facts["two"].reasons == {"duplicate": 3}
    assert [(item.rows_read, item.rows_kept, item.rows_dropped) for item in facts.values()] == [
        (10, 8, 2),
        (4, 1, 3),
    ]


def test_a_record_in_quarantine_tells_the_row_and_why(raw: Any) -> None:
    first, *_ = built(raw).quarantine()
    assert first == {
        "source": "alpha",
        "file": "alpha.jsonl",
        "row": 9,
        "piece": None,
        "reason": "no_exchange",
        "detail": "1 turns",
        "excerpt": '{"turns": ["alpha 9.0?"]}\n',
        "twin": None,
    }


def test_only_so_many_rows_are_read_as_asked_for(raw: Any) -> None:
    (raw.sources_dir / "zeta2.jsonl").write_text("".join(f'{{"turns": ["a {n}", "b"]}}\n' for n in range(5)))
    pattern = "sources.zeta.files=[zeta.jsonl,zeta2.jsonl]"
    for max_rows in (1, 7, 8, 60, 61, 64, 65, 66):
        facts = built(
            raw, pattern, f"sources.zeta.max_rows={max_rows}", f"out={raw.mixture.parent}/{max_rows}"
        ).manifest
        assert facts.sources["zeta"].rows_read == min(max_rows, 65)


# ------------------------------------------------------------------------------------------------ exactly so


def test_a_second_build_is_byte_for_byte_the_first(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = content(built(raw).folder)
    elsewhere = raw.mixture.parent / "another place"
    monkeypatch.setattr(build_module, "ROWS_PER_CHUNK", 3)
    assert content(built(raw, f"out={elsewhere}").folder) == first


def test_how_large_a_unit_is_does_not_change_a_byte(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = content(built(raw).folder)
    for number, (rows, size) in enumerate([(1, 10**9), (10**9, 1), (10**9, 150), (10**9, 10**9)]):
        monkeypatch.setattr(build_module, "ROWS_PER_CHUNK", rows)
        monkeypatch.setattr(build_module, "BYTES_PER_CHUNK", size)
        assert content(built(raw, f"out={raw.mixture.parent / str(number)}").folder) == first


def test_worker_processes_do_not_change_a_byte(raw: Any) -> None:
    first = content(built(raw, "workers=1").folder)
    assert content(built(raw, "workers=2", f"out={raw.mixture.parent / 'two'}").folder) == first


def test_no_path_host_or_clock_is_published(raw: Any) -> None:
    everything = b"".join(content(built(raw).folder).values())
    for word in (str(raw.sources_dir), str(raw.mixture.parent), os.uname().nodename):
        assert word.encode() not in everything


def test_the_order_of_sources_in_the_mixture_does_not_matter(raw: Any) -> None:
    first = content(built(raw).folder)
    mixture = json.loads(raw.mixture.read_text())
    mixture["sources"] = dict(reversed(mixture["sources"].items()))
    raw.mixture.write_text(json.dumps(mixture))
    assert content(built(raw, f"out={raw.mixture.parent / 'again'}").folder) == first


def test_a_finished_build_is_kept(raw: Any) -> None:
    first = built(raw)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert built(raw, "workers=2").manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


CHANGES: dict[str, Callable[[Any], object]] = {
    "setting": lambda _: ["seed=1"],
    "source off": lambda _: ["sources.zeta.enabled=false"],
    "recipe": lambda raw: (raw.recipes / "zeta" / "convert.py").open("a").write("\n# changed\n") and [],
    "raw file": lambda raw: (raw.sources_dir / "zeta.jsonl").open("a").write('{"turns": ["a", "b"]}\n') and [],
    "more files": lambda raw: (
        (raw.sources_dir / "b.jsonl").write_text('{"turns": ["a", "b"]}\n')
        and ["sources.zeta.files=[zeta.jsonl,b.jsonl]"]
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_build_is_never_overwritten(change: Callable[[Any], Any], raw: Any) -> None:
    first = content(built(raw).folder)
    with pytest.raises(ConfigError, match="holds another build") as caught:
        built(raw, *change(raw))
    assert "name another out" in str(caught.value)
    assert content(Path(raw.config().out)) == first


@pytest.mark.parametrize("left", ["something.txt", "manifest.json"])
def test_a_folder_that_is_no_build_is_never_touched(left: str, raw: Any) -> None:
    out = Path(raw.config().out)
    out.mkdir()
    (out / left).write_text("{}")
    with pytest.raises(ConfigError, match="is not a build"):
        built(raw)
    assert content(out) == {left: b"{}"}


def test_a_build_that_lost_a_file_is_not_taken_for_whole(raw: Any) -> None:
    shards = built(raw)
    (shards.folder / "documents.arrow").unlink()
    with pytest.raises(ConfigError, match=r"documents\.arrow: missing"):
        built(raw)


def test_leftovers_of_a_killed_build_change_nothing(raw: Any) -> None:
    first = content(built(raw).folder)
    out = raw.mixture.parent / "killed"
    staging_path(out).mkdir()
    (staging_path(out) / "train-00000-of-00001.arrow").write_bytes(b"half")
    assert content(built(raw, f"out={out}").folder) == first
