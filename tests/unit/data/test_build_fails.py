"""A build that cannot be right publishes nothing, and says what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft.data import build as build_module
from sft.data import publish
from sft.data.build import build
from sft.data.shards import Shards, write_documents
from sft.data.worker import Worker
from sft.errors import ConfigError, DataError, PeerError, SftError, StorageError
from sft.storage.publish import staging_path


def built(raw: Any, *arguments: str) -> Shards:
    return build(raw.config(*arguments), raw.recipes)


def work_folder(raw: Any) -> Path:
    """Where a build keeps its finished units."""
    return Path(raw.config().out).parent / ".shards.work"


def test_a_failed_build_publishes_nothing_and_can_be_repeated(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    out = Path(raw.config().out)
    monkeypatch.setattr(publish, "write_documents", fail)
    with pytest.raises(KeyboardInterrupt):
        built(raw)
    assert not out.exists()
    assert not staging_path(out).exists()
    monkeypatch.setattr(publish, "write_documents", write_documents)
    kept = {path.name: path.stat().st_mtime_ns for path in work_folder(raw).iterdir()}
    assert len(kept) == 13  # of 60 and 25 rows in units of 7

    def run_none(*_: object) -> None:
        raise AssertionError("a finished unit was made again")

    monkeypatch.setattr(Worker, "run", run_none)
    assert len(built(raw).documents) > 0
    assert not work_folder(raw).exists()


def test_a_build_that_fails_on_its_rows_shows_each_of_them(raw: Any) -> None:
    (raw.sources_dir / "zeta.jsonl").write_text('{"turns": ["only a question"]}\n' * 9 + '{"turns": ["a", "b"]}\n')
    with pytest.raises(DataError, match="source zeta: 9 of 10 rows were dropped") as caught:
        built(raw)
    quarantine = work_folder(raw) / "quarantine.jsonl"
    assert f"every dropped row is in {quarantine}" in str(caught.value)
    lines = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
    dropped = [("alpha", 9), ("alpha", 19), *(("zeta", number) for number in range(9))]
    assert [(line["source"], line["row"]) for line in lines] == dropped
    assert {line["reason"] for line in lines} == {"no_exchange"}
    (raw.sources_dir / "zeta.jsonl").write_text('{"turns": ["a", "b"]}\n')
    shards = built(raw)
    assert [line["row"] for line in shards.quarantine()] == [9, 19]
    assert not work_folder(raw).exists()


def test_two_builds_of_one_folder_do_not_run_together(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_again(*_: object) -> None:
        with pytest.raises(StorageError, match="in use by process"):
            built(raw)
        raise ZeroDivisionError

    monkeypatch.setattr(publish, "write_documents", build_again)
    with pytest.raises(ZeroDivisionError):
        built(raw)


def test_sources_without_files_are_all_named_with_the_way_out(raw: Any) -> None:
    for name in ("alpha", "zeta"):
        (raw.sources_dir / f"{name}.jsonl").unlink()
    with pytest.raises(DataError, match=r"alpha.*zeta") as caught:
        built(raw)
    assert "sources.alpha.enabled=false sources.zeta.enabled=false" in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        built(raw, "sources_dir=nowhere")


def test_a_file_that_two_sources_claim_is_named(raw: Any) -> None:
    with pytest.raises(ConfigError, match=r"alpha\.jsonl: is claimed by two sources, alpha and zeta"):
        built(raw, "sources.zeta.files=[zeta.jsonl,alp*.jsonl]")
    assert not Path(raw.config().out).exists()


def test_a_source_without_rows_is_named(raw: Any) -> None:
    (raw.sources_dir / "zeta.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"source zeta is empty: no row in zeta\.jsonl"):
        built(raw)


def test_a_broken_source_stops_the_build_before_the_next_one(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (raw.sources_dir / "alpha.jsonl").write_text("<html>\n" * 100)
    made: list[str] = []
    original = Worker.run
    monkeypatch.setattr(Worker, "run", lambda self, unit: made.append(unit.source) or original(self, unit))
    with pytest.raises(DataError, match=r"100 of 100 rows are unreadable; first alpha\.jsonl, row 0: invalid_json"):
        built(raw)
    assert made.count("alpha") == 15
    assert made.count("zeta") <= 1  # of nine: the one that tells that alpha has ended
    assert not Path(raw.config().out).exists()


def test_a_damaged_file_stops_the_build(raw: Any) -> None:
    (raw.sources_dir / "zeta.jsonl").write_text('[{"turns": ["a", "b"]}')
    with pytest.raises(DataError, match=r"zeta\.jsonl: damaged or cut short"):
        built(raw)
    assert not Path(raw.config().out).exists()


def test_a_build_without_documents_is_refused(raw: Any) -> None:
    with pytest.raises(DataError):
        built(raw, "sources.alpha.weight=1e-9", "sources.zeta.weight=1e-9", "valid_share=0")


def test_a_file_that_two_sources_would_read_is_refused(raw: Any) -> None:
    with pytest.raises(ConfigError, match=r"zeta\.jsonl: is claimed by two sources, alpha and zeta"):
        built(raw, "sources.alpha.files=[alpha.jsonl,z*.jsonl]")


def test_a_weight_that_leaves_nothing_to_train_on_is_refused(raw: Any) -> None:
    with pytest.raises(ConfigError, match=r"sources\.alpha\.weight=0\.01: expected more than valid_share=0\.01"):
        built(raw, "sources.alpha.weight=0.01")


def test_a_recipe_that_changes_during_the_build_is_not_recorded_as_the_one_that_ran(
    raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = built(raw).manifest["sources"]["zeta"]["recipe"]
    original = build_module.run_units

    def edit_meanwhile(*arguments: Any) -> Any:
        for result in original(*arguments):
            (raw.recipes / "zeta" / "convert.py").write_text("def convert(row): ...\n")
            yield result

    monkeypatch.setattr(build_module, "run_units", edit_meanwhile)
    try:
        found = built(raw, f"out={raw.mixture.parent / 'edited'}").manifest["sources"]["zeta"]["recipe"]
    except SftError:
        return
    assert found == wanted


def test_a_raw_file_that_changes_during_the_build_is_noticed(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = build_module.identify_sources

    def edit_afterwards(config: Any) -> Any:
        found = original(config)
        (raw.sources_dir / "zeta.jsonl").write_text('{"turns": ["new", "rows"]}\n' * 30)
        return found

    monkeypatch.setattr(build_module, "identify_sources", edit_afterwards)
    with pytest.raises(SftError, match=r"zeta\.jsonl"):
        built(raw)


# ------------------------------------------------------------------------------------------------ worker processes


def test_a_worker_process_that_dies_is_told(raw: Any) -> None:
    (raw.recipes / "zeta" / "convert.py").write_text("import os\ndef convert(row):\n    os._exit(9)\n")
    with pytest.raises(PeerError, match="a worker process died"):
        built(raw, "workers=2")
    assert not Path(raw.config().out).exists()


def test_an_error_in_a_worker_process_is_the_same_as_without(raw: Any) -> None:
    (raw.sources_dir / "alpha.jsonl").write_text("<html>\n" * 30)
    messages = []
    for workers in (1, 2):
        with pytest.raises(DataError) as caught:
            built(raw, f"workers={workers}")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("code", ["x = 1\n", "def convert(row:\n"], ids=["no function", "no Python"])
def test_a_recipe_that_cannot_be_loaded_is_named_with_several_workers(code: str, raw: Any) -> None:
    (raw.recipes / "zeta" / "convert.py").write_text(code)
    with pytest.raises(ConfigError, match="zeta"):
        built(raw, "workers=2")
