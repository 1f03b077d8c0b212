"""JSON over HTTP with patience: what back-ends that ask a server share."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from softlabels.errors import TeacherError

KEY = "SOFTLABELS_API_KEY"
TIMEOUT = 300.0
"""Seconds without a byte from the server."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each repetition, times 0.5 to 1 at random: many builders must not come back at once."""
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Refused(TeacherError):
    """The server understood, and will not."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would take the key along to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Server:
    """JSON over HTTP, with patience."""

    def __init__(self, url: str, notice: Callable[[str], None]) -> None:
        self._url, self._notice = url, notice
        self._opener = urllib.request.build_opener(_NoRedirect)

    def only_model(self, path: str = "models") -> str:
        """The model that is served, as `path` lists it; `TeacherError` if there are several, or none is named."""
        try:
            names = [str(m["id"]) for m in self._ask(path, None)["data"]]
        except (KeyError, TypeError) as e:
            raise TeacherError(f"{self._url}/{path}: names no models; give ?model=NAME") from e
        if len(names) != 1:
            raise TeacherError(
                f"{self._url}: serves {len(names)} models ({', '.join(names[:5])}); choose one with ?model=NAME"
            )
        return names[0]

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send and read JSON.

        Raises:
            Refused: the server says that the request is wrong.
            TeacherError: it cannot be reached, or fails again and again.
        """
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None) -> Any:
        url = f"{self._url}/{path}"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, body, headers)
        for attempt in range(len(PAUSES) + 1):
            try:
                with self._opener.open(request, timeout=TIMEOUT) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as e:
                text = e.read(2000).decode("utf-8", "replace").strip()
                said = f"{url}: the server answered {e.code} ({_message(text) or e.reason})"
                if e.code not in AGAIN:
                    raise Refused(said) from e
            except (OSError, http.client.HTTPException, ValueError) as e:
                said = f"{url}: cannot be read ({e})"
            if attempt < len(PAUSES):
                self._notice(f"{said}; trying again")
                time.sleep(PAUSES[attempt] * random.uniform(0.5, 1.0))
        raise TeacherError(
            f"{said}, {len(PAUSES) + 1} times in a row; finished shards are kept: start the same build again once it "
            "is back"
        )


def _message(text: str) -> str:
    """What an error's body says to people."""
    try:
        error = json.loads(text)
        error = error.get("error", error)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text
