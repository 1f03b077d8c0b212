"""Which part of a text is held out, where nobody said: 5 % of it, at most 200 kB.

Of several files the last ones, left where they are. Of one `.txt` its end, of one `.jsonl` every twentieth line or
fewer: both parts are then written beside the job, for a corpus is named by files. Anything else is not split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from softlabels.core.registry import split_spec
from softlabels.corpora import open_corpora

SHARE = 0.05
MOST = 200_000
"""Bytes: some 50,000 tokens, three times what the demo is tested on."""
FEWEST = 20_000
"""Bytes of a file, below which nothing is cut off it."""
LISTED = 200
"""Files that a job names one by one."""
CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Split:
    """Corpora to train on and to hold out."""

    train: list[str]
    heldout: list[str]
    why: str
    written: dict[str, Callable[[], Iterator[bytes]]] = field(default_factory=dict)
    """By name, files that are to be written into the job's folder; corpora name them without it."""


def split(specs: list[str]) -> Split:
    """Hold out a part of these corpora, if there is a way.

    Raises:
        CorpusError: one is not there.
    """
    none = Split(train=specs, heldout=[], why="nothing is held out: give --heldout CORPUS")
    if len(specs) != 1:
        return none
    kind, argument = split_spec(specs[0], flag="--corpus")
    if kind not in ("text", "jsonl", "parquet"):
        return none
    corpus = open_corpora(specs)[0]
    paths = list(corpus.paths)
    column = f"#{argument.rpartition('#')[2]}" if "#" in argument else ""
    if 1 < len(paths) <= LISTED:
        return _files(kind, paths, column)
    if len(paths) != 1 or paths[0].stat().st_size < FEWEST or kind == "parquet":
        return none
    return _end(paths[0]) if kind == "text" else _lines(paths[0])


def _files(kind: str, paths: list[Path], column: str) -> Split:
    """The last files, until they are a twentieth."""
    whole = sum(p.stat().st_size for p in paths)
    least = min(SHARE * whole, MOST)
    n = taken = 0
    while taken < least and n < len(paths) - 1:
        n += 1
        taken += paths[-n].stat().st_size
    specs = [f"{kind}:{path}{column}" for path in paths]
    return Split(
        train=specs[:-n],
        heldout=specs[-n:],
        why=f"the last {n} of {len(paths)} files, {taken / whole:.0%} of the text",
    )


def _end(path: Path) -> Split:
    """All after the first end of a paragraph, or of a line, in the last part."""
    size = path.stat().st_size
    cut = size - round(min(SHARE * size, MOST))
    with path.open("rb") as f:
        f.seek(cut)
        rest = f.read()
    for mark in (b"\n\n", b"\n", b" "):
        if 0 <= (at := rest.find(mark)) < len(rest) // 2:
            cut += at + len(mark)
            break
    return Split(
        train=["text:train.txt"],
        heldout=["text:heldout.txt"],
        why=f"the end of {path}, {(size - cut) / size:.1%} of it",
        written={
            "train.txt": lambda: _bytes(path, 0, cut),
            "heldout.txt": lambda: _bytes(path, cut, size),
        },
    )


def _lines(path: Path) -> Split:
    """Every so many lines one."""
    every = max(round(1 / SHARE), -(-path.stat().st_size // MOST))
    return Split(
        train=["jsonl:train.jsonl"],
        heldout=["jsonl:heldout.jsonl"],
        why=f"every {every}th line of {path}",
        written={
            "train.jsonl": lambda: _chosen(path, every, last=False),
            "heldout.jsonl": lambda: _chosen(path, every, last=True),
        },
    )


def _bytes(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as f:
        f.seek(begin)
        while begin < end and (chunk := f.read(min(CHUNK, end - begin))):
            begin += len(chunk)
            yield chunk


def _chosen(path: Path, every: int, *, last: bool) -> Iterator[bytes]:
    with path.open("rb") as f:
        for number, line in enumerate(f, start=1):
            if (number % every == 0) is last:
                yield line
