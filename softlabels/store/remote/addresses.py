"""Which service an address names, and how obstore is told to reach it."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from softlabels.errors import ConfigError, MissingExtraError, first_line
from softlabels.store.remote.web import Web

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "http", "https", "hf")
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
"""Environment variables that name another service than the scheme's own; obstore reads them, too."""
HUB = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.%-]+))?(/(?P<folder>[\w./-]+))?"
)
CONNECT = timedelta(seconds=5)
SILENCE = timedelta(seconds=15)
"""Without a byte for so long a request has failed."""
WHOLE = timedelta(hours=1)
"""Of one request; a slow one makes progress and is not given up."""


def check_address(url: str) -> str:
    """The address without a slash at its end; `ConfigError` if it is not of a store that we can reach."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"{url}: {parts.scheme}:// is not known; expected a folder, or one of "
            f"{', '.join(f'{s}://' for s in SCHEMES)}"
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(
            f"{parts.scheme}://{parts.hostname or ''}…: an address of a store holds no '?', '#' or password; "
            "credentials come from the environment"
        )
    if parts.scheme == "hf":
        hub_place(url)
    elif not parts.netloc:
        raise ConfigError(f"{url}: names no {'host' if 'http' in parts.scheme else 'bucket'}")
    return url.rstrip("/")


def writable(url: str) -> bool:
    """Whether files can be written there one by one."""
    return urlsplit(url).scheme in ("s3", "gs")


def hub_place(url: str) -> tuple[str, str | None, str]:
    """Repository, revision and folder (`""`: its root) of `hf://datasets/OWNER/NAME[@REVISION][/FOLDER]`.

    Raises:
        ConfigError: not of that form.
    """
    match = HUB.fullmatch(url.rstrip("/"))
    if match is None:
        raise ConfigError(f"{url}: expected hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
    return match["repository"], match["revision"], match["folder"] or ""


def open_address(url: str, *, checksums: bool = False) -> ObjectStore:
    """The obstore client of a bucket. Credentials are the environment's.

    Args:
        checksums: tell an S3 service the sha256 of what it is sent.

    Raises:
        MissingExtraError: obstore is not installed.
        ConfigError: what the environment says is not valid.
    """
    try:
        from obstore.store import from_url
    except ImportError as e:
        raise MissingExtraError("obstore", "remote", "a store at an address") from e
    names = ENDPOINTS.get(urlsplit(url).scheme, ())
    service = next((named for n in names if (named := os.environ.get(n))), "")
    options: Any = {
        "allow_http": service.startswith("http://"),  # the user's word
        "connect_timeout": CONNECT,
        "read_timeout": SILENCE,
        "timeout": WHOLE,
    }
    retries: Any = {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=10),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=1),
        },
    }
    more: Any = {"checksum_algorithm": "SHA256"} if checksums and url.startswith("s3://") else {}
    try:
        return from_url(url, client_options=options, retry_config=retries, **more)
    except Exception as e:  # whatever obstore makes of a variable that it cannot use
        raise ConfigError(f"{url}: {first_line(e)}") from e


def open_web(url: str) -> Web:
    """The web server of an address; of the Hub the folder of a repository, with what says who asks.

    Raises:
        MissingExtraError: a library for it is not installed.
    """
    if not url.startswith("hf://"):
        return Web(url)
    try:
        from huggingface_hub import get_token, hf_hub_url
    except ImportError as e:
        raise MissingExtraError("huggingface_hub", "remote", "a store on the Hub") from e
    repository, revision, folder = hub_place(url)
    name = f"{folder}/manifest.json" if folder else "manifest.json"
    address = hf_hub_url(repository, name, repo_type="dataset", revision=revision)
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Web(address.removesuffix("/manifest.json"), headers=headers, leads_away=True)
