"""The contracts of corpora, image sources, kinds to import and domains: the same things, each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from softlabels.core.registry import split_spec
from softlabels.corpora import open_corpora
from softlabels.domains import DOMAINS
from softlabels.domains.image_classification.sources import IMAGES
from softlabels.format.columns import Column
from softlabels.interchange import ForeignRow, rows_of_kind
from softlabels.store.reader import open_store


def check_corpus(spec: str) -> None:
    """Check a registered corpus on something of yours that it can read.

    Args:
        spec: as `--corpus` takes it, `NAME:ARGUMENT`.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError, CorpusError: it cannot be opened.
    """
    (corpus,) = open_corpora([spec])
    assert corpus.spec == spec, f"{spec}: says that it is {corpus.spec!r}"
    first = [_plain(d) for d in corpus.documents()]
    assert first, f"{spec}: holds no documents; check it on some"
    for i, document in enumerate(corpus.documents()):
        where = f"{spec}: document {i}"
        assert document.where, f"{where}: does not say where it lies"
        kinds = [
            k
            for k in ("text", "messages", "completion", "words", "ids")
            if vars(document)[k] is not None
        ]
        assert len(kinds) == 1, f"{where}: has {kinds}, expected one of them"
        assert (document.prompt is None) == (document.completion is None), (
            f"{where}: has a prompt or a completion, expected both or neither"
        )
    _same(spec, first, map(_plain, corpus.documents()), "a second pass")
    _same(spec, first, map(_plain, open_corpora([spec])[0].documents()), "opened again")
    one, two = corpus.documents(), corpus.documents()
    pairs = [(_plain(a), _plain(b)) for a, b in zip(one, two, strict=True)]
    assert all(a == b for a, b in pairs), f"{spec}: two passes at a time disturb each other"
    locations = [d.location for d in corpus.documents()]
    for i in sorted({0, 1, len(first) // 2, len(first) - 1} & set(range(len(first)))):
        if (location := locations[i]) is not None:
            where = f"{spec}: from the location of document {i} on"
            _same(where, first[i:], map(_plain, corpus.documents_from(location)), "a pass")


def check_images(spec: str) -> None:
    """Check a registered source of images on some of yours.

    Args:
        spec: as `--corpus` takes it for images, `NAME:ARGUMENT`.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError, CorpusError: it cannot be opened.
    """
    name, argument = split_spec(spec, flag="--corpus")
    source, again = IMAGES.load(name)(argument), IMAGES.load(name)(argument)
    assert len(source) == len(again) > 0, f"{spec}: holds no images, or not always as many"
    for i in range(len(source)):
        where = f"{spec}: image {i}"
        image = source.image(i)
        assert image.dtype == np.uint8, f"{where}: is {image.dtype}, expected uint8"
        assert image.ndim == 3, f"{where}: has {image.ndim} axes, expected [H, W, 3]"
        assert image.shape[2] == 3, f"{where}: has {image.shape[2]} channels, expected 3"
        assert source.label(i) is None or isinstance(source.label(i), str | int), (
            f"{where}: its label is {source.label(i)!r}"
        )
        assert source.where(i), f"{where}: does not say where it lies"
    for i in reversed(range(len(source))):  # in another order
        same = np.array_equal(source.image(i), again.image(i)) and source.label(i) == again.label(i)
        assert same, f"{spec}: image {i} is another one when it is asked for again"


def check_import(kind: str, path: Path) -> None:
    """Check a registered kind to import on a file of it.

    Args:
        kind: as `softlabels import` takes it.
        path: a file or folder of that kind.

    Raises:
        AssertionError: says which part of the contract is broken.
        ConfigError, CorpusError: there is no such kind, or the file is none.
    """
    first = [_plain(r) for r in rows_of_kind(kind, path)]
    assert first, f"{kind}: {path} holds no rows; check it on some"
    _same(kind, first, map(_plain, rows_of_kind(kind, path)), "a second pass")
    for row in rows_of_kind(kind, path):
        _check_row(row, f"{kind}: {row.where}")


def check_domain(store: Path | str, *, images: Sequence[str] = ()) -> None:
    """Check a registered domain by a store of it, built without `packed`: rows become columns, and the same rows.

    Args:
        store: a store of that domain, or its address.
        images: of a store of images, where they lie.

    Raises:
        AssertionError: says which part of the contract is broken.
        StoreError: it cannot be read.
    """
    opened = open_store(store, images=images)
    identity = opened.manifest.identity
    domain, name = DOMAINS.load(identity.domain), identity.domain
    shard = opened.shard(0)
    columns = domain.columns(shard.rows)
    expected = domain.expected(identity, len(shard.rows))
    assert columns.keys() == expected.keys(), (
        f"{name}: writes the columns {sorted(columns)}, and expects {sorted(expected)}"
    )
    for column, about in expected.items():
        found = columns[column]
        assert found.values.dtype == about.dtype, f"{name}: {column} is {found.values.dtype}"
        assert (found.offsets is not None) == about.listed, (
            f"{name}: {column} is a list, or is none"
        )
    numbered = {"row": Column(values=np.arange(len(shard.rows), dtype=np.int64))}
    again = domain.rows_of(columns | numbered, identity, where=name)
    for a, b in zip(shard.rows, again, strict=True):
        domain.check(b, identity, where=name)
        whole = a.digest()
        assert len(whole) == 16 >= domain.digest_bytes, f"{name}: a digest of {len(whole)} bytes"
        assert whole == b.digest(), f"{name}: rows that were written and read have another digest"
        assert len(b.labels) == len(b.context) == b.n, (
            f"{name}: labels or context are not of N positions"
        )
    padded = type(shard.rows[0]).pad(shard.rows)
    assert len(padded.labels) == len(padded.flat_positions) == sum(r.n for r in again), (
        f"{name}: side by side, rows have another number of positions than one by one"
    )
    assert len({r.digest() for r in again}) == len(again), f"{name}: different rows have one digest"


def _check_row(row: ForeignRow, where: str) -> None:
    assert row.where, "a row does not say where it lies"
    for name, dtype, shape in (
        ("input_ids", np.int32, (len(row.input_ids),)),
        ("label_mask", np.bool_, (len(row.input_ids),)),
        ("ids", np.int64, (int(row.label_mask.sum()), row.ids.shape[-1])),
        ("logp", np.float32, row.ids.shape),
    ):
        value = getattr(row, name)
        assert value.dtype == dtype, f"{where}: {name} is {value.dtype}, expected {dtype.__name__}"
        assert value.shape == shape, f"{where}: {name} is {value.shape}, expected {shape}"
    assert not row.label_mask[-1:].any(), (
        f"{where}: its last token has a target, and nothing after it"
    )
    assert not (row.logp > 0).any(), f"{where}: has a log-probability above 0"


def _plain(record: Any) -> dict[str, Any]:
    """Fields, with arrays as lists, so that they can be compared."""
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in vars(record).items()}


def _same(
    where: str, first: list[dict[str, Any]], second: Iterable[dict[str, Any]], when: str
) -> None:
    pairs: Iterator[tuple[Any, Any]] = zip_longest(first, second)
    for i, (a, b) in enumerate(pairs):
        assert a == b, f"{where}: {when} gives another document or row {i}: {b}, not {a}"
