"""A build that cannot be right publishes nothing, and says what is wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.chat.tokenizer import ChatTokenizer, train_tokenizer
from sft.data.build import build as build_module
from sft.data.build import writer
from sft.data.build.build import build
from sft.data.build.worker import Worker
from sft.data.documents import write_documents
from sft.data.shards import Shards
from sft.errors import ConfigError, DataError, PeerError, SftError, StorageError
from sft.storage.atomic import staging_path


def built(raw: Any, *arguments: str) -> Shards:
    return build(raw.config(*arguments), raw.recipes)


def work_folder(raw: Any) -> Path:
    """Where a build keeps its finished chunks."""
    return Path(raw.config().out).parent / ".shards.work"


def test_a_failed_build_publishes_nothing_and_can_be_repeated(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    out = Path(raw.config().out)
    monkeypatch.setattr(writer, "write_documents", fail)
    with pytest.raises(KeyboardInterrupt):
        built(raw)
    assert not out.exists()
    assert not staging_path(out).exists()
    monkeypatch.setattr(writer, "write_documents", write_documents)
    kept = {path.name: path.stat().st_mtime_ns for path in work_folder(raw).iterdir()}
    assert len(kept) == 13  # of 60 and 25 rows in chunks of 7

    def run_none(*_: object) -> None:
        raise AssertionError("a finished chunk was made again")

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

    monkeypatch.setattr(writer, "write_documents", build_again)
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
    monkeypatch.setattr(Worker, "run", lambda self, chunk: made.append(chunk.source) or original(self, chunk))
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
    wanted = built(raw).manifest.sources["zeta"].recipe
    original = build_module.run_chunks

    def edit_meanwhile(*arguments: Any) -> Any:
        for result in original(*arguments):
            (raw.recipes / "zeta" / "convert.py").write_text("def convert(row): ...\n")
            yield result

    monkeypatch.setattr(build_module, "run_chunks", edit_meanwhile)
    try:
        found = built(raw, f"out={raw.mixture.parent / 'edited'}").manifest.sources["zeta"].recipe
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


def test_rows_of_another_version_are_never_kept_for_a_rebuild(
    raw: Any, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced after it was hashed, by one as long, and then put back."""
    original, file = build_module.identify_sources, raw.sources_dir / "zeta.jsonl"
    content = file.read_bytes()

    def replace_afterwards(config: Any) -> Any:
        found = original(config)
        file.write_bytes(content.replace(b"answer", b"ANSWER"))
        os.utime(file, (1, 1))  # clocks of file systems may be coarse
        return found

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "identify_sources", replace_afterwards)
        with pytest.raises(DataError, match=r"zeta\.jsonl"):
            built(raw)
    file.write_bytes(content)
    split = built(raw).split("train")
    text = "".join(tokenizer.decode([split[index].input_ids_T for index in range(len(split))]))
    assert "answer" in text
    assert "ANSWER" not in text


EDITED: dict[str, tuple[int, Callable[[Any], Path], str]] = {
    "recipe's code": (1, lambda raw: raw.recipes / "zeta" / "convert.py", "\n"),
    "recipe's code, several workers": (2, lambda raw: raw.recipes / "zeta" / "convert.py", "\n"),
    "recipe's settings": (1, lambda raw: raw.recipes / "alpha" / "recipe.yaml", "\n"),
    "evaluation file": (1, lambda raw: raw.sources_dir / "quiz.txt", " and another word"),
    "tokenizer": (2, lambda raw: raw.sources_dir / "tokenizer.json", ""),
}


@pytest.mark.parametrize(("workers", "place", "added"), EDITED.values(), ids=EDITED)
def test_what_is_edited_before_a_worker_loads_it_stops_the_build(
    workers: int,
    place: Callable[[Any], Path],
    added: str,
    raw: Any,
    tokenizer: ChatTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = build_module.run_chunks
    (raw.sources_dir / "quiz.txt").write_text("one two three four five six seven eight nine ten eleven twelve thirteen")
    (raw.sources_dir / "tokenizer.json").write_text(tokenizer.json)

    def edit_before(*arguments: Any) -> Any:
        path = place(raw)
        path.write_text(path.read_text() + added if added else train_tokenizer(["other words"], 300).json)
        yield from original(*arguments)

    monkeypatch.setattr(build_module, "run_chunks", edit_before)
    with pytest.raises(ConfigError, match="changed since the build started"):
        built(
            raw,
            f"workers={workers}",
            f"evaluation_files=[{raw.sources_dir / 'quiz.txt'}]",
            f"tokenizer={raw.sources_dir / 'tokenizer.json'}",
        )
    assert not Path(raw.config().out).exists()
    assert list(work_folder(raw).iterdir()) == []


def test_two_files_of_equal_bytes_are_refused(raw: Any) -> None:
    (raw.sources_dir / "zeta-copy.jsonl").write_bytes((raw.sources_dir / "zeta.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"zeta\.jsonl: holds the same bytes as zeta-copy\.jsonl"):
        built(raw, "sources.zeta.files=[zeta*.jsonl]")


def test_an_evaluation_file_that_cannot_be_read_is_told_before_any_process_starts(
    raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "run_chunks", lambda *_: pytest.fail("a process was started"))
    (tmp_path / "quiz.jsonl").write_text("<html>\n")
    with pytest.raises(DataError, match=r"quiz\.jsonl"):
        built(raw, f"evaluation_files=[{tmp_path / 'quiz.jsonl'}]", "workers=2")


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


def test_a_recipe_that_never_returns_ends_the_build_and_shows_where(raw: Any) -> None:
    path = raw.recipes / "zeta" / "convert.py"
    path.write_text(path.read_text().replace("    turns = row", "    while True:\n        pass\n    turns = row"))
    with pytest.raises(PeerError, match=r"chunk_timeout_s=4 for one chunk(.|\n)*convert\.py\", line \d+ in convert"):
        built(raw, "workers=2", "chunk_timeout_s=4")
    assert not Path(raw.config().out).exists()
