"""A completions server on loopback whose log-probabilities a real (tiny or not) teacher computes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from softlabels.core.rows import Row
from softlabels.teachers import Teacher
from tests.teachers.tiny import log_probs


class Completions:
    """What the server does; tests change it between requests."""

    def __init__(self, teacher: Teacher, style: str) -> None:
        self.teacher = teacher
        self.style = style
        """`prompt_logprobs`, `token_id`, `text` or `none`."""
        self.models = ["tiny"]
        self.largest = 20
        self.failures: list[int] = []
        """Statuses to answer with before anything else; 0: close the connection."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.change = lambda logp: logp
        self._one = threading.Lock()

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids = body["prompt"]
        k = body.get("prompt_logprobs") or body.get("logprobs")
        if k > self.largest:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.largest}"
            return 400, {"error": {"message": message, "type": "BadRequestError"}}
        if self.style == "token_id" and "prompt_logprobs" in body:
            return 400, {"error": "unknown field prompt_logprobs"}
        row = Row(
            input_ids=np.array(ids, np.int32),
            segment_lengths=np.array([len(ids)], np.int32),
            documents=np.zeros(1, np.int64),
            label_mask=np.arange(len(ids)) < len(ids) - 1,
        )
        with self._one:
            logp = self.change(log_probs(self.teacher.logits([row])).astype(np.float32))
        tops: list[dict[int, float] | None] = [None]
        for t in range(len(ids) - 1):
            best = np.argsort(-logp[t], kind="stable")[:k].tolist()
            tops.append({i: float(logp[t, i]) for i in [ids[t + 1], *best]})
        if self.style == "prompt_logprobs":
            said = [
                None if at is None else {str(i): {"logprob": p, "rank": 1} for i, p in at.items()}
                for at in tops
            ]
            return 200, {"choices": [{"text": "", "prompt_logprobs": said}]}
        if self.style == "none":
            return 200, {"choices": [{"text": "x"}]}
        name = (lambda i: f"token_id:{i}") if self.style == "token_id" else (lambda i: f"<{i}>")
        listed = [
            None if at is None else {name(i): p for i, p in list(at.items())[1:]} for at in tops
        ]
        new = {name(3): -0.5}
        logprobs = {
            "tokens": [*map(name, ids), name(3)],
            "token_logprobs": [
                None,
                *(at[i] for at, i in zip(tops[1:], ids[1:], strict=True)),
                -0.5,
            ],
            "top_logprobs": [*listed, new],
        }
        return 200, {"choices": [{"text": "", "logprobs": logprobs}]}


@contextmanager
def serving(answer: Callable[[str, Any, str | None], tuple[int, Any] | None]) -> Iterator[str]:
    """The address of a server.

    Args:
        answer: from path, body (None of a GET) and bearer to a status and JSON; None: the connection closes.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(answer(self.path, None, self.headers["Authorization"]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(answer(self.path, body, self.headers["Authorization"]))

        def _send(self, said: tuple[int, Any] | None) -> None:
            if said is None:
                return
            status, value = said
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve(teacher: Teacher, style: str = "prompt_logprobs") -> Iterator[tuple[Completions, str]]:
    """Yields the server's behaviour and its base URL."""
    completions = Completions(teacher, style)

    def answer(path: str, body: Any, key: str | None) -> tuple[int, Any] | None:
        if body is None:
            return 200, {"data": [{"id": m} for m in completions.models]}
        completions.bodies.append(body)
        completions.keys.append(key)
        if completions.failures:
            status = completions.failures.pop(0)
            return (status, {"error": {"message": "busy"}}) if status else None
        return completions.answer(body)

    with serving(answer) as url:
        yield completions, f"{url}/v1"
