"""`flat`: a line of JSON that says what follows, then the bytes themselves, after a digest of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.codecs.streams import Stream
from softlabels.errors import IntegrityError
from softlabels.format.columns import Column, Expected, Facts

suffix = "flat"
DIGEST = 32


def write_columns(columns: Mapping[str, Column], facts: Facts) -> bytes:
    arrays = {}
    for name, column in columns.items():
        arrays[name] = column.values
        if column.offsets is not None:
            arrays[f"{name}/offsets"] = column.offsets
    index = [[n, a.dtype.str, list(a.shape)] for n, a in arrays.items()]
    return _sealed("columns", index, facts, [a.tobytes() for a in arrays.values()])


def read_columns(
    data: bytes, expected: Mapping[str, Expected], *, records: int | None, where: str
) -> dict[str, Column]:
    head, body = _open(data, "columns", where)
    arrays, at = {}, 0
    for name, dtype, shape in head["index"]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(body[at : at + size], dtype).reshape(shape)
        at += size
    found = {}
    for name, about in expected.items():
        values, offsets = arrays.get(name), arrays.get(f"{name}/offsets")
        if values is None or values.dtype != about.dtype or (offsets is not None) != about.listed:
            raise IntegrityError(f"{where}: has no column {name!r} of the expected type")
        count = len(values) if offsets is None else len(offsets) - 1
        if records not in (None, count) or (about.most is not None and len(values) > about.most):
            raise IntegrityError(
                f"{where}: column {name!r} holds {count} records, or too many entries"
            )
        found[name] = Column(values=values, offsets=offsets)
    return found


def write_streams(streams: Mapping[str, Stream], facts: Facts) -> bytes:
    index = [[n, s.entries, len(s.data)] for n, s in streams.items()]
    return _sealed("streams", index, facts, [s.data for s in streams.values()])


def read_streams(data: bytes, *, where: str) -> dict[str, Stream]:
    head, body = _open(data, "streams", where)
    found, at = {}, 0
    for name, entries, size in head["index"]:
        found[name] = Stream(entries=entries, data=body[at : at + size])
        at += size
    return found


def read_facts(data: bytes, *, where: str) -> dict[str, str]:
    facts: dict[str, str] = _open(data, None, where)[0]["facts"]
    return facts


def column_bytes(path: Path) -> dict[str, int]:
    index = _open(path.read_bytes(), "columns", str(path))[0]["index"]
    found: dict[str, int] = {}
    for name, dtype, shape in index:
        column = name.partition("/")[0]
        found[column] = found.get(column, 0) + int(np.prod(shape)) * np.dtype(dtype).itemsize
    return found


def _sealed(kind: str, index: list[Any], facts: Facts, parts: list[bytes]) -> bytes:
    head = json.dumps({"kind": kind, "index": index, "facts": dict(facts)}).encode()
    content = b"".join([head, b"\n", *parts])
    return hashlib.sha256(content).digest() + content


def _open(data: bytes, kind: str | None, where: str) -> tuple[dict[str, Any], bytes]:
    content = data[DIGEST:]
    if hashlib.sha256(content).digest() != data[:DIGEST]:
        raise IntegrityError(f"{where}: is no flat file, or was altered; copy it again")
    head, _, body = content.partition(b"\n")
    found: dict[str, Any] = json.loads(head)
    if kind not in (None, found["kind"]):
        raise IntegrityError(f"{where}: holds {found['kind']}, expected {kind}")
    return found, body
