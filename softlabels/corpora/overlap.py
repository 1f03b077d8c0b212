"""A store must not lie among the files of its own corpus: going on with it would read what it wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from softlabels.corpora import Corpus
from softlabels.errors import ConfigError

WRITTEN = (
    "plan.json",
    "manifest.json",
    "README.md",
    "commits/00000.json",
    "data/train-00000-of-00001.parquet",
    "data/train-00000-of-00001.zarr",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/vocab.txt",
)
"""Names such as a store has."""


def refuse_overlap(corpora: Sequence[object], specs: Sequence[str], store: Path) -> None:
    """Refuse a store whose folder holds files of the corpus, or whose own files the corpus would take in.

    Args:
        corpora: opened, of text (whose `paths` are looked at) or of images.
        specs: of them, `name:argument`.
        store: the folder that is to become one.

    Raises:
        ConfigError: names the file.
    """
    inside = Path(os.path.abspath(store))  # noqa: PTH100  `resolve` would follow the links in it
    for corpus in corpora:
        for path in corpus.paths if isinstance(corpus, Corpus) else ():
            if path.resolve().is_relative_to(store.resolve()):
                raise ConfigError(
                    f"--out {store}: holds a file of --corpus ({path}); a store must not lie among the files that it "
                    "is made from: choose another --out"
                )
    for spec in specs:
        pattern = spec.partition(":")[2].partition("#")[0]
        parts = Path(os.path.abspath(pattern)).parts  # noqa: PTH100  a pattern is not to be resolved
        for name in WRITTEN:
            if _covers(parts, (inside / name).parts):
                raise ConfigError(
                    f"--out {store}: --corpus {spec} would take in the store's own {name}; choose an --out that "
                    "the pattern does not cover"
                )


def _covers(pattern: Sequence[str], path: Sequence[str]) -> bool:
    """Whether a recursive glob matches a path, part by part."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_covers(pattern[1:], path[i:]) for i in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _covers(pattern[1:], path[1:])
