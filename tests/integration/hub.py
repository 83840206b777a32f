"""A stand-in for the Hugging Face hub on the loopback interface, with faults to order.

It serves what the client asks for: the description of a data-set repository at a revision, and its files, of which the
large ones (LFS) are a redirect to another origin, as on the real hub.
"""

import gzip
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 1000
"""Larger files are kept outside of git (LFS) and served from elsewhere."""
ENDLESS_BYTES = 64 * 2**20
"""How much a server without an end sends if nobody stops it."""


def commit_of(files: dict[str, bytes]) -> str:
    """The commit that holds these files."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@dataclass
class Request:
    """What a client asked for."""

    path: str
    host: str
    range: str | None
    authorization: str | None
    user_agent: str


@dataclass
class LocalHub:
    """Repositories by name, each with its commits and branches; `faults` are used up, `fired` counts them."""

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of a part of the path and the fault of the next request for it."""
    fired: Counter[str] = field(default_factory=Counter)
    requests: list[Request] = field(default_factory=list)
    num_filler_bytes: int = 0
    """How many bytes were sent behind the end of a file."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def push(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit these files as all that a branch holds."""
        commit = commit_of(files)
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.branches.setdefault(repository, {})[branch] = commit
        return commit

    def fault(self, place: str, *kinds: str) -> None:
        """Let the next requests whose path contains `place` fail, one after the other."""
        self.faults += [(place, kind) for kind in kinds]

    def downloads(self, place: str = "") -> list[Request]:
        """The requests for the bytes of files, redirects not counted."""
        return [request for request in self.requests if "/bytes/" in request.path and place in request.path]

    def next_fault(self, path: str) -> str:
        for item in self.faults:
            if item[0] in path:
                self.faults.remove(item)
                self.fired[item[1]] += 1
                return item[1]
        return ""

    @contextmanager
    def serving(self) -> Iterator["LocalHub"]:
        """Answer on a port of its own while the block runs."""
        server = _Server(("127.0.0.1", 0), _Handler)
        server.hub, self.port = self, server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    hub: LocalHub
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        get = self.headers.get
        hub.requests.append(Request(path, get("Host", ""), get("Range"), get("Authorization"), get("User-Agent", "")))
        fault = hub.next_fault(path)
        if fault.isdecimal():
            self._answer(int(fault), b"", {"Retry-After": "7"} if fault == "429" else {})
        elif fault == "portal":
            self._answer(200, b"<html>Please log in to this network</html>", {"Content-Type": "text/html"})
        elif fault == "hang up":
            self.close_connection = True
        elif match := re.fullmatch(r"/api/datasets/(.+/.+)/revision/(.+)", path):
            self._describe(*match.groups())
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(r"/bytes/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._send_bytes(hub.commits[match[1]][match[2]][match[3]], fault)
        else:
            self._answer(404, b"")

    def do_HEAD(self) -> None:
        """What the client's own download asks for before the bytes: whose they are, how many, and their hash."""
        match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
        assert match is not None
        content = self.server.hub.commits[match[1]][match[2]][match[3]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", match[2])
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()

    def _files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        hub = self.server.hub
        if repository not in hub.commits:
            # The real hub does not tell strangers which names exist.
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if repository in hub.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            return None
        commit = hub.branches[repository].get(revision, revision)
        if commit not in hub.commits[repository]:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, hub.commits[repository][commit]

    def _describe(self, repository: str, revision: str) -> None:
        if found := self._files(repository, revision):
            commit, files = found
            siblings = [_sibling(name, content) for name, content in files.items()]
            text = json.dumps({"id": repository, "sha": commit, "siblings": siblings, "tags": []})
            self._answer(200, text.encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if found := self._files(repository, revision):
            commit, files = found
            if name not in files:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            # Another host name is another origin.
            origin = f"http://localhost:{self.server.hub.port}" if len(files[name]) > LARGE_BYTES else ""
            self._answer(302, b"", {"Location": f"{origin}/bytes/{repository}/{commit}/{name}"})

    def _send_bytes(self, content: bytes, fault: str) -> None:
        start = 0
        if fault != "whole" and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(match[1])
        body = content[start:]
        if fault == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        elif fault == "shorter":
            body = body[: len(body) // 2]
        self.send_response(206 if start else 200)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        if fault != "endless":
            self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if fault == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)
        if fault == "endless":
            self._send_filler()

    def _send_filler(self) -> None:
        self.close_connection = True
        with suppress(ConnectionError):
            while self.server.hub.num_filler_bytes < ENDLESS_BYTES:
                self.wfile.write(b"!" * 2**16)
                self.server.hub.num_filler_bytes += 2**16

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    facts = {"rfilename": name, "size": len(content), "blobId": git}
    if len(content) <= LARGE_BYTES:
        return facts
    sha256 = hashlib.sha256(content).hexdigest()
    return {**facts, "blobId": "0" * 40, "lfs": {"sha256": sha256, "size": len(content), "pointerSize": 130}}
