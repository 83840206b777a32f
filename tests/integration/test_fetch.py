"""`fetch` against a hub on the loopback interface: whole files, pinned commits, and every fault survived or named."""

import hashlib
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from sft.config.data import BuildConfig, SourceConfig
from sft.data.sources.fetch import fetch
from sft.data.sources.files import find_files, identify
from sft.data.sources.hub import RetryPolicy
from sft.data.sources.lockfile import LOCK, read_lock, require_locked
from sft.data.sources.recipe import load_mixture
from sft.errors import ConfigError, DataError, PeerError, SftError, StorageError
from tests.integration.hub import ENDLESS_BYTES, LocalHub

RECIPES = Path(__file__).parents[2] / "data_recipes"
BIG = bytes(range(256)) * 3000
SMALL = b'{"instruction": "a", "output": "b"}\n'
FILES = {"README.md": b"# A card\n", "data/train-0.jsonl": BIG, "extra.jsonl": SMALL, "data/test-0.jsonl": b"test\n"}
REPOSITORY = "someone/talks"


@pytest.fixture(scope="module")
def no_proxy() -> Iterator[None]:
    """A fresh HTTP client that reaches the loopback interface directly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        huggingface_hub.close_session()
        yield
        huggingface_hub.close_session()


@pytest.fixture
def hub(no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:  # noqa: ARG001
    """An empty hub that the client takes for the real one."""
    with LocalHub().serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


class Fetching:
    """Calls `fetch` on a folder, notes what it says and how long it would have slept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.slept_s: list[float] = []

    def __call__(self, *, update: bool = False, **sources: SourceConfig) -> Any:
        self.said.clear()
        self.slept_s.clear()
        retries = RetryPolicy(num_attempts=4, sleep=self.slept_s.append)
        return fetch(self.config(**sources), update=update, say=self.said.append, retries=retries)

    def config(self, **sources: SourceConfig) -> BuildConfig:
        return BuildConfig(sources=sources or {"talks": TALKS}, sources_dir=str(self.folder), tokenizer="", out="")

    def content(self) -> dict[str, bytes]:
        """All files with their bytes, but for the folder lock and the lock file."""
        own = {LOCK, ".fetch.lock"}
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.name not in own)
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}


TALKS = SourceConfig(
    title="Talks",
    hub_id=REPOSITORY,
    files=("talks/**/*.jsonl",),
    license="CC0-1.0",
    citation="Someone",
    system="",
    hub_files=("data/train*", "extra.jsonl"),
)
CHOSEN = {"talks/data/train-0.jsonl": BIG, "talks/extra.jsonl": SMALL}


@pytest.fixture
def fetching(tmp_path: Path) -> Fetching:
    return Fetching(tmp_path / "raw")


def raw_files(fetching: Fetching) -> dict[str, Any]:
    """The files as a build identifies them."""
    return {"talks": [identify(path, fetching.folder) for path in find_files(fetching.folder, TALKS.files)]}


# ------------------------------------------------------------------------------------------------ what arrives


def test_the_matching_files_arrive_whole_and_are_pinned(hub: LocalHub, fetching: Fetching) -> None:
    commit = hub.push(REPOSITORY, FILES)
    lock = fetching()
    assert fetching.content() == CHOSEN
    assert lock == read_lock(fetching.folder)
    source = lock["talks"]
    assert (source.hub_id, source.revision, source.commit, source.license) == (REPOSITORY, "main", commit, "CC0-1.0")
    assert {(file.name, file.bytes, file.sha256) for file in source.files} == {
        (name, len(content), hashlib.sha256(content).hexdigest()) for name, content in CHOSEN.items()
    }
    assert fetching.said == [f"talks: 2 files, 0.8 MB, {REPOSITORY} at {commit[:12]}, 2 downloaded"]
    assert fetching.slept_s == []
    require_locked(fetching.folder, raw_files(fetching))


def test_the_lock_is_the_same_bytes_every_time(hub: LocalHub, tmp_path: Path) -> None:
    hub.push(REPOSITORY, FILES)
    locks = []
    for name in ("one", "two"):
        Fetching(tmp_path / name)()
        locks.append((tmp_path / name / LOCK).read_bytes())
    assert locks[0] == locks[1]


def test_nothing_is_asked_of_the_hub_when_everything_is_there(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    fetching()
    hub.requests.clear()
    fetching()
    assert hub.requests == []


def test_files_that_are_there_before_the_first_fetch_are_not_downloaded(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    for name, content in CHOSEN.items():
        (fetching.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (fetching.folder / name).write_bytes(content)
    fetching()
    assert hub.downloads() == []
    assert set(fetching.content()) == {file.name for file in read_lock(fetching.folder)["talks"].files}


def test_an_empty_file_is_a_file(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, {"extra.jsonl": b""})
    fetching()
    assert fetching.content() == {"talks/extra.jsonl": b""}


@pytest.mark.parametrize("name", ["sharegpt", "alpaca", "dolly", "hh", "gpt4all"])
def test_a_recipe_finds_what_it_fetches(name: str, hub: LocalHub, fetching: Fetching) -> None:
    """The repositories' layouts as published; of each, `hub_files` and `files` agree on what the build reads."""
    parquet = ["data/train-00000-of-00002-a09b.parquet", "data/train-00001-of-00002-77cd.parquet"]
    layouts = {
        "alpaca": (parquet, ["README.md", ".gitattributes"]),
        "dolly": (parquet, ["README.md", ".gitattributes"]),
        "gpt4all": (parquet, ["README.md", ".gitattributes"]),
        "hh": (parquet, ["README.md", "data/test-00000-of-00001-ec71.parquet"]),
        "sharegpt": (
            ["sharegpt_90k_raw_dataset/sg_90k_part1.json", "sharegpt_90k_raw_dataset/sg_90k_part2.json"],
            ["README.md", "sharegpt_20230401_clean_lang_split.json", "sharegpt_20230401_html.json", "clean.py"],
        ),
    }
    wanted, others = layouts[name]
    mixture = RECIPES / "mixtures" / "stablelm_tuned_alpha.yaml"
    arguments = [f"sources_dir={fetching.folder}", "tokenizer=tokenizer.json", "out=shards"]
    source = load_mixture(mixture, arguments).config.sources[name]
    hub.push(source.hub_id, {path: f"{path}\n".encode() for path in [*wanted, *others]})
    lock = fetching(**{name: source})
    found = [path.relative_to(fetching.folder).as_posix() for path in find_files(fetching.folder, source.files)]
    assert found == [file.name for file in lock[name].files] == [f"{name}/{path}" for path in wanted]


# ------------------------------------------------------------------------------------------------ the lock holds


def test_a_moved_branch_changes_nothing_until_asked(hub: LocalHub, fetching: Fetching) -> None:
    first = hub.push(REPOSITORY, FILES)
    fetching()
    second = hub.push(REPOSITORY, {**FILES, "extra.jsonl": b"new\n"})
    shutil.rmtree(fetching.folder / "talks")
    hub.requests.clear()
    assert fetching()["talks"].commit == first
    assert fetching.content() == CHOSEN
    assert not any(request.path.startswith("/api/") for request in hub.requests)
    assert fetching(update=True)["talks"].commit == second != first
    assert fetching.content() == {**CHOSEN, "talks/extra.jsonl": b"new\n"}


@pytest.mark.parametrize("damage", [b"short", bytes(len(SMALL))], ids=["another size", "the same size"])
def test_only_a_missing_or_wrong_file_is_fetched_again(damage: bytes, hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    fetching()
    (fetching.folder / "talks/extra.jsonl").write_bytes(damage)
    hub.requests.clear()
    fetching()
    assert fetching.content() == CHOSEN
    assert [request.path.rsplit("/", 1)[-1] for request in hub.downloads()] == ["extra.jsonl"]


def test_an_update_removes_what_the_new_commit_lacks_but_no_file_of_the_user(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, {**FILES, "data/train-1.jsonl": b"old\n", "data/train-2.jsonl": b"old too\n"})
    fetching()
    (fetching.folder / "talks/data/train-2.jsonl").write_bytes(b"my own edit\n")
    (fetching.folder / "talks/mine.jsonl").write_bytes(b"mine\n")
    hub.push(REPOSITORY, FILES)
    fetching(update=True)
    mine = {"talks/data/train-2.jsonl": b"my own edit\n", "talks/mine.jsonl": b"mine\n"}
    assert fetching.content() == {**CHOSEN, **mine}
    assert any("talks/data/train-1.jsonl: removed" in line for line in fetching.said)


def test_other_sources_keep_their_entries(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    hub.push("someone/other", FILES)
    other = replace(TALKS, hub_id="someone/other")
    fetching(talks=TALKS, other=other)
    before = read_lock(fetching.folder)
    hub.push(REPOSITORY, {**FILES, "extra.jsonl": b"moved on\n"})
    fetching(other=other, talks=replace(TALKS, enabled=False), update=True)
    fetching(other=other, update=True)
    assert read_lock(fetching.folder) == before
    assert set(before) == {"talks", "other"}


def test_another_revision_in_the_recipe_is_resolved_anew(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    fetching()
    commit = hub.push(REPOSITORY, {"extra.jsonl": b"v2\n"}, branch="v2")
    source = fetching(talks=replace(TALKS, revision="v2"))["talks"]
    assert (source.revision, source.commit) == ("v2", commit)
    assert fetching.content() == {"talks/extra.jsonl": b"v2\n"}
    assert "the recipe names someone/talks at v2" in fetching.said[0]


def test_other_patterns_choose_from_the_locked_commit(hub: LocalHub, fetching: Fetching) -> None:
    commit = hub.push(REPOSITORY, FILES)
    fetching()
    hub.push(REPOSITORY, {"data/test-0.jsonl": b"moved on\n"})
    lock = fetching(talks=replace(TALKS, hub_files=(*TALKS.hub_files, "data/test*")))
    assert lock["talks"].commit == commit
    assert fetching.content() == {**CHOSEN, "talks/data/test-0.jsonl": b"test\n"}


def test_a_commit_can_be_asked_for_by_its_hash(hub: LocalHub, fetching: Fetching) -> None:
    commit = hub.push(REPOSITORY, FILES)
    hub.push(REPOSITORY, {"extra.jsonl": b"later\n"})
    assert fetching(talks=replace(TALKS, revision=commit))["talks"].commit == commit
    assert fetching.content() == CHOSEN


def test_a_source_that_is_not_on_the_hub_is_skipped_with_a_word(hub: LocalHub, fetching: Fetching) -> None:
    assert fetching(talks=replace(TALKS, hub_id="none")) == {}
    assert fetching.said == ["talks: not on the hub, nothing to fetch"]
    assert hub.requests == []


# ------------------------------------------------------------------------------------------------ faults that pass


@pytest.mark.parametrize("place", ["/api/", "/resolve/", "/bytes/"])
@pytest.mark.parametrize("kinds", [("503", "503"), ("429",), ("500", "hang up", "504"), ("hang up",)], ids=str)
def test_a_fault_that_passes_is_outlived(kinds: tuple[str, ...], place: str, hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    hub.fault(place, *kinds)
    fetching()
    assert fetching.content() == CHOSEN
    assert sum(hub.fired.values()) == len(kinds)
    assert fetching.slept_s == ([7.0] if kinds == ("429",) else [1.0, 2.0, 4.0][: len(kinds)])
    assert sum("trying again in" in line for line in fetching.said) == len(kinds)


@pytest.mark.parametrize("kind", ["cut", "shorter"], ids=["connection lost", "answer too short"])
def test_a_cut_download_goes_on_where_it_stopped(kind: str, hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    hub.fault("/bytes/", *[kind] * 6)
    fetching()
    assert fetching.content() == CHOSEN
    assert hub.fired == {kind: 6}
    ranges = [request.range for request in hub.downloads("train-0")]
    assert ranges[:3] == [None, f"bytes={len(BIG) // 2}-", f"bytes={len(BIG) * 3 // 4}-"]
    # Six in a row are more than the four attempts: those that brought bytes do not count against it.
    assert fetching.slept_s == [1.0] * 6


def test_a_download_goes_on_in_the_next_run(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    hub.fault("train-0", "", "cut", *["503"] * 4)  # the first is the redirect
    with pytest.raises(PeerError, match="HTTP 503"):
        fetching()
    assert (hub.fired["cut"], hub.fired["503"]) == (1, 4)
    assert [len(content) for content in fetching.content().values()] == [len(BIG) // 2]
    assert find_files(fetching.folder, TALKS.files) == []
    hub.requests.clear()
    fetching()
    assert fetching.content() == CHOSEN
    assert hub.downloads("train-0")[0].range == f"bytes={len(BIG) // 2}-"


def test_a_server_that_ignores_ranges_is_read_from_the_start(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    hub.fault("/bytes/", "cut", "whole")
    fetching()
    assert fetching.content() == CHOSEN
    assert hub.fired == {"cut": 1, "whole": 1}


def test_a_spoilt_part_of_an_earlier_run_is_thrown_away(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    digest = hashlib.sha256(BIG).hexdigest()
    part = fetching.folder / f"talks/data/.train-0.jsonl.{digest[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    fetching()
    assert fetching.content() == CHOSEN
    assert [request.range for request in hub.downloads("train-0")] == ["bytes=1000-", None]


# ------------------------------------------------------------------------------------------------ faults that stay


@pytest.mark.parametrize("name", ["train-0", "extra"], ids=["sha256 of a large file", "git's hash of a small one"])
@pytest.mark.parametrize("kind", ["wrong", "endless"])
def test_other_bytes_than_announced_are_refused(kind: str, name: str, hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    hub.fault(f"{name}.jsonl", "", kind)
    with pytest.raises(DataError, match=rf"{name}.jsonl: the hash is .*, expected "):
        fetching()
    assert hub.fired[kind] == 1
    assert f"{name}.jsonl" not in str(fetching.content())
    assert read_lock(fetching.folder) == {}
    assert hub.num_filler_bytes < ENDLESS_BYTES


def test_the_lock_s_hash_is_held_against_the_hub(hub: LocalHub, fetching: Fetching) -> None:
    commit = hub.push(REPOSITORY, FILES)
    fetching()
    (fetching.folder / "talks/extra.jsonl").unlink()
    hub.commits[REPOSITORY][commit] = {**FILES, "extra.jsonl": SMALL.upper()}
    with pytest.raises(DataError, match=r"extra.jsonl: the hash is .*, expected "):
        fetching()


# what is wrong at the hub, what is asked, kind of error, exit code, words of the message
REFUSALS: list[tuple[str, dict[str, Any], type[SftError], int, list[str]]] = [
    ("no such repository", {"hub_id": "someone/nothing"}, ConfigError, 78, ["someone/nothing", "no such data set"]),
    ("gated", {"hub_id": "someone/gated"}, ConfigError, 78, ["gated", "/datasets/someone/gated", "HF_TOKEN"]),
    ("no such revision", {"revision": "v9"}, ConfigError, 78, ["has no revision v9", "sources.talks.revision"]),
    ("malformed name", {"hub_id": "a/b/c"}, ConfigError, 78, ["owner/name"]),
    ("no pattern", {"hub_files": ()}, ConfigError, 78, ["talks has no hub_files"]),
    ("no match", {"hub_files": ("*.csv",)}, ConfigError, 78, ["*.csv", "README.md", "sources.talks.hub_files"]),
    ("outside", {"hub_id": "someone/evil"}, DataError, 65, ["'../../evil.jsonl' is not a path inside a repository"]),
]


@pytest.mark.parametrize(
    ("asked", "kind", "code", "words"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_what_cannot_be_had_is_named_at_once(
    asked: dict[str, Any], kind: type[SftError], code: int, words: list[str], hub: LocalHub, fetching: Fetching
) -> None:
    hub.push(REPOSITORY, FILES)
    hub.push("someone/gated", FILES)
    hub.push("someone/evil", {"../../evil.jsonl": b"evil\n"})
    hub.gated.add("someone/gated")
    with pytest.raises(SftError) as caught:
        fetching(talks=replace(TALKS, **{"hub_files": ("*.jsonl",), **asked}))
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert [word for word in words if word not in str(caught.value)] == []
    assert fetching.slept_s == []
    assert fetching.content() == {}
    assert not (fetching.folder / LOCK).exists()


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("503", 71, "asked 4 times in a row: HTTP 503"),
        ("hang up", 71, "asked 4 times in a row: RemoteProtocolError"),
        ("401", 78, "private|refuses us"),
        ("403", 78, "refuses us"),
        ("418", 71, "HTTP 418"),
        ("portal", 71, "does not describe a repository"),
    ],
)
def test_a_hub_that_stays_broken_ends_in_one_message(
    kind: str, code: int, words: str, hub: LocalHub, fetching: Fetching
) -> None:
    hub.push(REPOSITORY, FILES)
    hub.fault("/api/", *[kind] * 4)
    with pytest.raises(SftError, match=words) as caught:
        fetching()
    assert caught.value.exit_code == code
    assert hub.fired[kind] == len(fetching.slept_s) + 1


@pytest.mark.usefixtures("no_proxy")
def test_no_hub_at_all_is_a_peer_error(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://me:secret@127.0.0.1:1/")
    with pytest.raises(PeerError, match=r"in a row: ConnectError(.|\n)*http://127\.0\.0\.1:1 reachable") as caught:
        fetching()
    assert not any("secret" in text for text in [str(caught.value), *fetching.said])


def test_the_client_s_offline_switch_is_named(
    hub: LocalHub, fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(REPOSITORY, FILES)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="unset HF_HUB_OFFLINE"):
        fetching()
    assert hub.requests == []


def test_a_file_that_left_the_hub_is_named(hub: LocalHub, fetching: Fetching) -> None:
    commit = hub.push(REPOSITORY, FILES)
    fetching()
    (fetching.folder / "talks/extra.jsonl").unlink()
    del hub.commits[REPOSITORY][commit]["extra.jsonl"]
    with pytest.raises(DataError, match=rf"no longer there at commit {commit[:12]}(.|\n)*--update"):
        fetching()
    hub.commits[REPOSITORY].clear()
    with pytest.raises(ConfigError, match=rf"has no revision {commit}(.|\n)*--update"):
        fetching()


def test_too_small_a_disk_is_told_before_the_first_byte(
    hub: LocalHub, fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(REPOSITORY, FILES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, len(BIG)))
    with pytest.raises(StorageError, match=f"{len(BIG) + len(SMALL):,} bytes to download, {len(BIG):,} free"):
        fetching()
    assert hub.downloads() == []


def test_a_folder_in_a_file_s_place_is_a_storage_error(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    (fetching.folder / "talks/extra.jsonl").mkdir(parents=True)
    with pytest.raises(StorageError):
        fetching()


def test_a_source_that_fails_does_not_undo_those_before_it(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    hub.push("someone/other", FILES)
    hub.fault("/bytes/someone/talks", "wrong")
    with pytest.raises(DataError):
        fetching(other=replace(TALKS, hub_id="someone/other"), talks=TALKS)
    assert hub.fired == {"wrong": 1}
    assert list(read_lock(fetching.folder)) == ["other"]


# ------------------------------------------------------------------------------------------------ discretion


def test_the_token_goes_to_the_hub_only_and_into_no_message(
    hub: LocalHub, fetching: Fetching, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    hub.push(REPOSITORY, FILES)
    hub.fault("", "503")
    hub.fault("/resolve/", "403")
    with pytest.raises(ConfigError) as caught:
        fetching()
    fetching()
    by_host = {request.host.partition(":")[0]: set[str | None]() for request in hub.requests}
    for request in hub.requests:
        by_host[request.host.partition(":")[0]].add(request.authorization)
    assert by_host == {"127.0.0.1": {"Bearer hf_verysecret"}, "localhost": {None}}
    output = capfd.readouterr()
    seen = [str(caught.value), *fetching.said, output.out, output.err, (fetching.folder / LOCK).read_text()]
    assert not any("verysecret" in text for text in seen)


def test_the_hub_is_told_nothing_about_this_machine(hub: LocalHub, fetching: Fetching) -> None:
    hub.push(REPOSITORY, FILES)
    fetching()
    agents = {request.user_agent for request in hub.requests}
    assert len(agents) == 1
    assert [part.split("/")[0].strip() for part in agents.pop().split(";")] == ["sft", "hf_hub", "python"]
    asked = {request.path.split("/")[1] for request in hub.requests}
    assert asked == {"api", "datasets", "bytes"}
    assert sum(request.path.startswith("/api/") for request in hub.requests) == 1


# ------------------------------------------------------------------------------------------------ why not the client's


def client_s_download(hub: LocalHub, commit: str, folder: Path) -> Path:
    """One file by the client's own download."""
    file = huggingface_hub.hf_hub_download(
        REPOSITORY, "data/train-0.jsonl", repo_type="dataset", revision=commit, local_dir=folder, endpoint=hub.url
    )
    return Path(file)


def test_the_client_s_own_download_keeps_nothing_of_a_failed_one(hub: LocalHub, tmp_path: Path) -> None:
    commit = hub.push(REPOSITORY, FILES)
    hub.fault("/bytes/", "shorter")
    with pytest.raises(OSError, match="Consistency check failed"):
        client_s_download(hub, commit, tmp_path)
    # If this fails the client goes on where it stopped, and Hub.download may be replaced; see sft/data/sources/hub.py.
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes()[:100] == BIG[:100]]


def test_the_client_s_own_download_believes_its_notes_not_the_bytes(hub: LocalHub, tmp_path: Path) -> None:
    commit = hub.push(REPOSITORY, FILES)
    path = client_s_download(hub, commit, tmp_path)
    times = path.stat()
    path.write_bytes(bytes(len(BIG)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert client_s_download(hub, commit, tmp_path).read_bytes() != BIG
