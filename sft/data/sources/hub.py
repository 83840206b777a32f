"""The Hugging Face hub: resolve a revision to a commit and its files, and download files, with retries.

The only file that imports `huggingface_hub`. Its client sends the requests, but the bytes of files are streamed here:
`hf_hub_download` (2.4) deletes a partial file when it fails, and trusts its metadata about a local file, not the bytes.
tests/integration/test_fetch.py shows both. Once the first is fixed, `snapshot_download` of the commit, with the hashes
checked here as they are now, can replace `Hub.download`.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from sft.errors import ConfigError, DataError, PeerError, StorageError
from sft.hashing import file_sha256
from sft.storage.atomic import sync_folder
from sft.version import VERSION

TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
# The base of all errors of the hub's HTTP client, a library that changes its name with the hub's version.
TRANSPORT_ERROR: type[Exception] = hub_errors.HfHubHTTPError.__bases__[0]

T = TypeVar("T")
Count = Callable[[int], None]


@dataclass(frozen=True)
class RetryPolicy:
    """How often in a row a request may fail without receiving a byte, and how long to wait in between."""

    num_attempts: int = 7
    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0
    sleep: Callable[[float], None] = time.sleep


DEFAULT_RETRIES = RetryPolicy()


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; `digest` is its sha256, or the 40 digits of git's sha1 if it is kept in git itself."""

    path: str
    num_bytes: int
    digest: str

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` has this content."""
        return size_of(path) == self.num_bytes and path.is_file() and self.digest_of(path) == self.digest

    def digest_of(self, path: Path) -> str:
        """The digest of another file, of the same kind as this one's."""
        return file_sha256(path) if len(self.digest) == 64 else _git_sha1(path)

    def part(self, path: Path) -> Path:
        """The path of the partial download; a file with another digest has another path."""
        return path.with_name(f".{path.name}.{self.digest[:12]}.part")


@dataclass(frozen=True)
class Repository:
    """A data-set repository and the source that names it."""

    source: str
    hub_id: str

    def __str__(self) -> str:
        return f"source {self.source}, {self.hub_id}"


class Hub:
    """The hub at HF_ENDPOINT; requests that fail with a transient error are retried."""

    def __init__(self, say: Callable[[str], None], retries: RetryPolicy = DEFAULT_RETRIES) -> None:
        # Otherwise the client would send the hub a list of installed packages.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        self._say, self._retries = say, retries
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        # Messages must not show the password of a mirror.
        self._shown = re.sub(r"//[^/@]*@", "//", self._endpoint)
        self._api = HfApi(endpoint=self._endpoint, library_name="sft", library_version=VERSION)

    def resolve(self, repository: Repository, revision: str) -> tuple[str, list[HubFile]]:
        """The commit that a revision names now, and its files.

        Raises: ConfigError if there is no such repository or revision, or access is denied; PeerError if the hub does
        not answer, or its answer is not that of a hub.
        """
        timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            info = self._patiently(
                lambda: self._api.dataset_info(
                    repository.hub_id, revision=revision, files_metadata=True, timeout=timeout_s
                ),
                repository,
                revision,
            )
            return _hex(info.sha, 40), [_hub_file(item) for item in info.siblings or ()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PeerError(
                f"the answer does not describe a repository: {error!r}",
                on=str(repository),
                hint=f"is {self._shown} the hub? see HF_ENDPOINT and the proxy",
            ) from error

    def download(self, repository: Repository, commit: str, file: HubFile, path: Path, count: Count) -> None:
        """Download one file to `path` and check its hash; a partial download of an earlier try is resumed.

        Raises: DataError if its hash is wrong, PeerError if the download fails.
        """
        part = file.part(path)
        url = hf_hub_url(repository.hub_id, file.path, repo_type="dataset", revision=commit, endpoint=self._endpoint)
        for _ in range(2):
            began_with = size_of(part)
            self._patiently(lambda: _stream(url, part, file, count), repository, commit, lambda: size_of(part))
            found = file.digest_of(part)
            if found == file.digest:
                with self._translated(repository, commit):
                    part.replace(path)
                    # Without this, a power cut after the lock is written may undo the rename.
                    sync_folder(path.parent)
                return
            count(-size_of(part))
            part.unlink()
            if not began_with:
                break  # no earlier run left a part that could be the cause, so a second try is useless
        raise DataError(
            f"{file.path}: the hash is {found[:12]}…, expected {file.digest[:12]}…",
            on=str(repository),
            hint="run it again; if it fails again, a proxy or mirror changes the files",
        )

    def _patiently(
        self, work: Callable[[], T], repository: Repository, revision: str, gained: Callable[[], int] = lambda: 0
    ) -> T:
        """Retry after transient errors, unless too many in a row made no progress."""
        num_failures, most = 0, gained()
        while True:
            try:
                with self._translated(repository, revision):
                    return work()
            except _TransientError as error:
                num_failures, most = (0 if gained() > most else num_failures + 1), max(most, gained())
                if num_failures >= self._retries.num_attempts:
                    raise PeerError(
                        f"asked {num_failures} times in a row: {error}",
                        on=str(repository),
                        hint=f"is {self._shown} reachable? the same command continues where this one stopped",
                    ) from error
                wait_s = max(self._retries.first_wait_s * 2 ** max(0, num_failures - 1), error.retry_after_s)
                wait_s = min(wait_s, self._retries.longest_wait_s)
                self._say(f"{repository}: {error}; trying again in {wait_s:g} s")
                self._retries.sleep(wait_s)

    @contextmanager
    def _translated(self, repository: Repository, revision: str) -> Iterator[None]:
        """Raise the hub's errors as errors of sft; URLs are left out, since they may contain signatures."""
        on, page = str(repository), f"{self._shown}/datasets/{repository.hub_id}"
        log_in = "log in (hf auth login) or set HF_TOKEN"
        try:
            yield
        except hub_errors.GatedRepoError:
            raise ConfigError(
                "the repository is gated", on=on, hint=f"accept its conditions at {page}, then {log_in}"
            ) from None
        except hub_errors.RepositoryNotFoundError:
            raise ConfigError(
                "no such data set, or it is private", on=on, hint=f"check hub_id; if it is private, {log_in}"
            ) from None
        except hub_errors.RevisionNotFoundError:
            raise ConfigError(
                f"has no revision {revision}",
                on=on,
                hint=f"set sources.{repository.source}.revision=…; if the lock names it: sft fetch --update",
            ) from None
        except hub_errors.EntryNotFoundError:
            raise DataError(
                f"a locked file is no longer there at commit {revision[:12]}", on=on, hint="sft fetch --update"
            ) from None
        except hub_errors.HFValidationError as error:
            raise ConfigError(str(error), on=on, hint="hub_id is owner/name, or none") from None
        except hub_errors.OfflineModeIsEnabled:
            raise ConfigError("the hub is switched off", on=on, hint="unset HF_HUB_OFFLINE") from None
        except hub_errors.HfHubHTTPError as error:
            raise _refusal(error, on, log_in) from None
        except TRANSPORT_ERROR as error:
            raise _TransientError(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            raise StorageError(f"cannot be written: {error}", on=on, hint="check space and permissions") from error


class _TransientError(Exception):
    """A failure that may not occur again on a retry."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


def size_of(path: Path) -> int:
    """The bytes of a file, 0 if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _stream(url: str, part: Path, file: HubFile, count: Count) -> None:
    """Append the bytes that are still missing."""
    size = size_of(part)
    if size >= file.num_bytes and part.exists():
        return
    # With a compressed transfer, the bytes could be neither counted nor resumed.
    headers = build_hf_headers(library_name="sft", library_version=VERSION) | {"Accept-Encoding": "identity"}
    if size:
        headers["Range"] = f"bytes={size}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            count(-size)
            size = 0
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if size else "wb") as stream:
            for chunk in response.iter_raw():
                stream.write(chunk)
                count(len(chunk))
                size += len(chunk)
                if size > file.num_bytes:
                    break  # already too long: an endless response must not fill the disk
            stream.flush()
            os.fsync(stream.fileno())
    if size < file.num_bytes:
        raise _TransientError(f"{file.path} ended after {size} of {file.num_bytes} bytes")


def _refusal(error: hub_errors.HfHubHTTPError, on: str, log_in: str) -> Exception:
    status = error.response.status_code
    if status in TRANSIENT_STATUS:
        wait = error.response.headers.get("Retry-After", "")
        return _TransientError(f"HTTP {status}", float(wait) if wait.isdecimal() else 0.0)
    if status in (401, 403):
        return ConfigError(f"the hub refuses us (HTTP {status})", on=on, hint=log_in)
    return PeerError(f"the hub answers HTTP {status}", on=on, hint="run it again later")


def _hub_file(item: RepoSibling) -> HubFile:
    if item.size is None:
        raise ValueError(f"{item.rfilename} has no size")
    digest = _hex(item.lfs.sha256, 64) if item.lfs else _hex(item.blob_id, 40)
    return HubFile(item.rfilename, item.size, digest)


def _hex(value: str | None, num_digits: int) -> str:
    if value is None or len(value) != num_digits or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{value!r} is no hash of {num_digits} digits")
    return value


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(f"blob {size_of(path)}\0".encode(), usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()
