"""What tells one content of a file in a bucket from the next, and what a PUT on condition of that needs.

A version is the ETag: the one thing that listings and single answers of both services tell alike. S3 numbers versions,
too, where a bucket keeps them, but a listing does not say them. Google numbers each content (its generation), and
obeys conditions on that number alone, which obstore leaves out of what it lists. So who replaces a file of Google's
first asks for its ETag and generation: one request more. What is put there between the two has another generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from softlabels.errors import RemoteError
from softlabels.format.files import Address


class Untold(RemoteError):
    """A service wrote a file, and tells no version of it."""


NO_VERSION = f'"{"0" * 32}"'
"""A version that no file has."""
_NO_GENERATION = "1"
"""A generation that no file has: they are counted in microseconds since 1970."""


def version_of(root: Address, about: Mapping[str, Any]) -> str:
    """The version that an answer tells of a file; empty: it tells none."""
    tag = str(about.get("e_tag") or "")
    return tag.strip('"') if _by_generation(root) else tag


def refuse_untold(error: Exception, where: Address) -> None:
    """Raise `Untold` for an answer to a PUT without an ETag: no conditions can be put there, and no retry mends it."""
    if "ETag Header missing" in str(error):
        raise Untold(
            f"{where}: the service tells no version (ETag) of what was written, so nothing there could be replaced on "
            "condition; use a service that does, or copy the store's folder there by the service's own tools"
        ) from error


def condition_on(
    root: Address, name: str, version: str, head: Callable[[], Mapping[str, Any]]
) -> dict[str, str] | None:
    """What obstore is told to replace a file on condition of its version; None: it is of another.

    Args:
        root: the bucket's address.
        name: of the file.
        version: that it must have.
        head: asks what is told of the file now.

    Raises:
        FileNotFoundError: it is gone.
        RemoteError: the service tells no generation.
    """
    if not _by_generation(root):
        return {"e_tag": version}
    if version == NO_VERSION:
        return {"version": _NO_GENERATION}
    about = head()
    if not about.get("version"):
        raise RemoteError(
            f"{root / name}: the service tells no x-goog-generation, so it cannot be replaced on condition; use one "
            "that does, or build in a folder and `softlabels push` it"
        )
    return {"version": about["version"]} if version_of(root, about) == version else None


def _by_generation(root: Address) -> bool:
    return str(root).startswith("gs://")
