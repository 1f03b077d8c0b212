"""Folder markers: empty objects that consoles of S3 and Google make for a folder, such as `claims/`.

An empty object with the name of the store's prefix, or of one of its folders, is nobody's and no file: listings leave
it out, so that no command counts it, names it as a stranger's, or removes it. obstore lists it without its slash. Every
other object that no record names is a stranger's, and so is one of these names that is not empty.
"""

from __future__ import annotations

from softlabels.format.layout import FOLDERS

_MARKED = frozenset({"", *FOLDERS, "quarantine"})


def is_marker(name: str, size: int) -> bool:
    """Whether a listed object is a folder's marker."""
    return size == 0 and name.rstrip("/") in _MARKED
