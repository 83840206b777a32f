"""A stand-in for the server of Weights & Biases: answers just enough for a run, or misbehaves as told."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Behaviour = Literal[
    "works", "denies", "fails", "hangs", "is gone", "hangs after the start", "answers nonsense after the start"
]

_OWNER = {"id": "owner", "name": "me"}
_PROJECT = {"id": "project", "name": "sft", "entity": _OWNER}
_RUN = {"id": "run", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0, "project": _PROJECT}
_START = {
    "RunResumeStatus": {"model": {**_PROJECT, "bucket": None}},
    "UpsertBucket": {"upsertBucket": {"bucket": _RUN, "inserted": True}},
}
_FILES = {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []}}


class WandbServer:
    """What the requests said; `behaviour` may change at any time."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour, self.bodies, self.url = behaviour, list[bytes](), ""
        self.released = threading.Event()
        self._num_upserts = 0

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON for a request."""
        self.bodies.append(body)
        name = next((name for name in _START if name.encode() in body), None)
        self._num_upserts += name == "UpsertBucket"
        is_starting = name is not None and self._num_upserts < 2
        if self.behaviour == "hangs" or (self.behaviour == "hangs after the start" and not is_starting):
            self.released.wait()
        if self.behaviour in ("denies", "fails"):
            return (401 if self.behaviour == "denies" else 500), {"errors": [{"message": self.behaviour}]}
        if name is not None:
            return 200, {"data": _START[name]}
        is_nonsense = self.behaviour == "answers nonsense after the start"
        return 200, {"data": _FILES if b"CreateRunFiles" in body and not is_nonsense else {}}

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the run's history that have arrived."""
        streams = [json.loads(body) for body in self.bodies if body.startswith(b'{"files"')]
        files = [stream["files"].get("wandb-history.jsonl", {}) for stream in streams]
        return [json.loads(line) for file in files for line in file.get("content", ())]


@contextmanager
def wandb_server(behaviour: Behaviour) -> Iterator[WandbServer]:
    """The server, listening while the block runs."""
    state = WandbServer(behaviour)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_zipped = self.headers.get("Content-Encoding") == "gzip"
            status, values = state.answer(gzip.decompress(body) if is_zipped else body)
            text = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
