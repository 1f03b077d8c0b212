"""The contract of `softlabels.format.columns.Container`: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from softlabels.codecs.streams import Stream, pack
from softlabels.errors import IntegrityError
from softlabels.format.columns import Column, Container, Expected
from softlabels.format.encoding import CONTAINERS

R = 40
FACTS = {"softlabels.statistics": '{"kept_ids":3}', "softlabels.dictionary": "ab" * 32}
FLIPS = 48
"""Bits of a file that are flipped, one at a time."""


def check_container(name: str) -> None:
    """Check a registered container on columns and on streams, whole and damaged.

    Args:
        name: as `--container` takes it.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError: there is no such container.
    """
    container = CONTAINERS.load(name)
    assert container.suffix == container.suffix.strip("./") != "", (
        f"{name}: suffix is {container.suffix!r}, expected one without a dot before it"
    )
    _check_columns(name, container)
    _check_streams(name, container)


def _columns() -> dict[str, Column]:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, R)
    counts[[0, -1]] = 0, 5
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    n = int(offsets[-1])
    return {
        "row": Column(values=np.arange(7, 7 + R, dtype=np.int64)),
        "input_digest": Column(values=rng.integers(0, 256, (R, 16)).astype(np.uint8)),
        "ids": Column(values=rng.integers(0, 2**31, n).astype(np.int32), offsets=offsets),
        "logp": Column(values=-rng.exponential(4, n).astype(np.float16), offsets=offsets),
        "log_odds_T0_5": Column(
            values=np.where(rng.random(n) < 0.2, -np.inf, 1.5).astype(np.float32), offsets=offsets
        ),
        "nothing": Column(values=np.zeros(0, np.int32), offsets=np.zeros(R + 1, np.int64)),
    }


def _check_columns(name: str, container: Container) -> None:
    columns = _columns()
    data = container.write_columns(columns, FACTS)
    assert data == container.write_columns(columns, FACTS), (
        f"{name}: equal columns give other bytes"
    )
    assert container.read_facts(data, where=name) == FACTS, f"{name}: facts do not come back"
    expected = {
        n: Expected(
            dtype=c.values.dtype,
            listed=c.offsets is not None,
            width=16 if c.values.ndim == 2 else None,
            most=len(c.values),
        )
        for n, c in columns.items()
    }

    def read(data: bytes) -> None:
        found = container.read_columns(data, expected, records=R, where=name)
        for n, column in columns.items():
            same = found[n].values.dtype == column.values.dtype
            same = same and np.array_equal(found[n].values, column.values)
            ends = [[] if c.offsets is None else c.offsets.tolist() for c in (column, found[n])]
            same = same and ends[0] == ends[1]
            assert same, f"{name}: column {n!r} does not come back"

    read(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file.{container.suffix}")
        path.write_bytes(data)
        sizes = container.column_bytes(path)
    sound = {"row", "ids", "logp"} <= sizes.keys() and sum(sizes.values()) <= 2 * len(data)
    assert sound, f"{name}: column_bytes gives {sizes} of a file of {len(data)} bytes"
    one = {"ids": expected["ids"]}
    assert set(container.read_columns(data, one, records=None, where=name)) == {"ids"}, (
        f"{name}: reads other columns than are asked for"
    )
    for what, wrong in {
        "a column that is missing": {"none": expected["ids"]},
        "a column of another type": {"ids": Expected(dtype=np.dtype(np.int64))},
        "a list in the place of a value": {"ids": Expected(dtype=np.dtype(np.int32), listed=False)},
        "a value in the place of a list": {"row": Expected(dtype=np.dtype(np.int64))},
        "more entries than there may be": {"ids": Expected(dtype=np.dtype(np.int32), most=3)},
    }.items():
        _refuses(
            partial(container.read_columns, data, wrong, records=R, where=name),
            f"{name}: {what}",
        )
    _refuses(
        partial(container.read_columns, data, expected, records=R + 1, where=name),
        f"{name}: another number of records",
    )
    _check_damage(name, data, read)


def _check_streams(name: str, container: Container) -> None:
    rng = np.random.default_rng(1)
    streams = {
        "kept": pack(rng.integers(0, 9, 500).astype(np.uint32)),
        "ids.0": pack(rng.integers(0, 2**32, 500).astype(np.uint32)),
        "empty": Stream(entries=0, data=b""),
        "hidden": Stream(entries=64, data=rng.bytes(256)),
    }
    data = container.write_streams(streams, FACTS)
    assert data == container.write_streams(streams, FACTS), (
        f"{name}: equal streams give other bytes"
    )
    assert container.read_facts(data, where=name) == FACTS, f"{name}: facts do not come back"

    def read(data: bytes) -> None:
        found = container.read_streams(data, where=name)
        assert found == streams, f"{name}: streams do not come back"

    read(data)
    _check_damage(name, data, read)


def _check_damage(name: str, data: bytes, read: Callable[[bytes], None]) -> None:
    """What is torn or altered is refused, or does not matter."""
    for size in (0, 1, len(data) // 2, len(data) - 1):
        _refuses(partial(read, data[:size]), f"{name}: a file cut to {size} bytes")
    _refuses(partial(read, b"\0" * len(data)), f"{name}: a file of zeros")
    for i in np.random.default_rng(2).integers(0, 8 * len(data), FLIPS).tolist():
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        try:
            read(bytes(flipped))
        except IntegrityError:
            continue
        except AssertionError as e:
            raise AssertionError(f"{e} after bit {i} was flipped: give the file a checksum") from e


def _refuses(read: Callable[[], object], what: str) -> None:
    try:
        read()
    except IntegrityError:
        return
    except AssertionError as e:
        raise AssertionError(
            f"{what}: is read as something else; expected an IntegrityError"
        ) from e
    raise AssertionError(f"{what}: is read; expected an IntegrityError")
