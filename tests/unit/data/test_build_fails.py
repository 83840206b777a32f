"""A build that cannot be right publishes nothing, and says what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from sft.data import build as build_module
from sft.data import publish
from sft.data.build import build
from sft.data.shards import Shards
from sft.errors import ConfigError, DataError, PeerError, SftError, StorageError
from sft.storage.publish import staging_path


def built(raw: Any, *arguments: str) -> Shards:
    return build(raw.config(*arguments), raw.recipes)


def test_a_failed_build_leaves_nothing_and_can_be_repeated(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    out = Path(raw.config().out)
    monkeypatch.setattr(publish, "write_documents", fail)
    with pytest.raises(KeyboardInterrupt):
        built(raw)
    assert not out.exists()
    assert not staging_path(out).exists()
    monkeypatch.undo()
    assert len(built(raw).documents) > 0


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


def test_a_source_without_rows_is_named(raw: Any) -> None:
    (raw.sources_dir / "zeta.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"source zeta is empty: no row in zeta\.jsonl"):
        built(raw)


def test_a_broken_source_stops_the_build_before_the_next_one(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (raw.sources_dir / "alpha.jsonl").write_text("<html>\n" * 100)
    read: list[str] = []
    original = build_module.read_rows
    monkeypatch.setattr(build_module, "read_rows", lambda path: read.append(path.name) or original(path))
    with pytest.raises(DataError, match=r"100 of 100 rows are unreadable; first alpha\.jsonl, row 0: invalid_json"):
        built(raw)
    assert "zeta.jsonl" not in read[1:-1]
    assert not Path(raw.config().out).exists()


def test_a_damaged_file_stops_the_build(raw: Any) -> None:
    (raw.sources_dir / "zeta.jsonl").write_text('[{"turns": ["a", "b"]}')
    with pytest.raises(DataError, match=r"zeta\.jsonl: damaged or cut short"):
        built(raw)
    assert not Path(raw.config().out).exists()


def test_a_build_without_documents_is_refused(raw: Any) -> None:
    with pytest.raises(DataError):
        built(raw, "sources.alpha.weight=1e-9", "sources.zeta.weight=1e-9")


def test_a_recipe_that_changes_during_the_build_is_not_recorded_as_the_one_that_ran(
    raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = built(raw).manifest["sources"]["zeta"]["recipe"]
    original = build_module.run_chunks

    def edit_meanwhile(*arguments: Any) -> Any:
        for result in original(*arguments):
            (raw.recipes / "zeta" / "convert.py").write_text("def convert(row): ...\n")
            yield result

    monkeypatch.setattr(build_module, "run_chunks", edit_meanwhile)
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
