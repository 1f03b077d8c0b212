"""Opening a finished store and reading rows from it, with every byte checked before it is used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from softlabels.codecs import CODECS
from softlabels.domains import DOMAINS, domain_module
from softlabels.domains.image_classification import ImageRow
from softlabels.errors import ConfigError, FormatError, IntegrityError
from softlabels.images.views import ImageViews
from softlabels.rows import Row
from softlabels.store.dictionaries import Dictionaries
from softlabels.store.encoding import CONTAINERS, PROFILES, decode_shard
from softlabels.store.manifest import Identity, Manifest, ShardRecord, load_manifest
from softlabels.store.pictures import open_views
from softlabels.store.records import check_file
from softlabels.store.shard import Shard, StoredRow
from softlabels.views import Dropped, VocabView

__all__ = ["Shard", "Store", "StoredRow", "check_known", "open_store"]

CACHED_SHARDS = 2
ESTIMATORS = ("topk", "topp", "sampled", "rs", "dense")
"""Kinds of kept set whose meaning this reader knows; not a registry, since meaning is not looked up."""


class Store:
    """A finished store. Make one with `open_store`.

    Shards are decoded when first touched, after their size and sha256 are found equal to the manifest's;
    the last few stay in memory. Not shared between threads: each opens its own.

    With images the rows of a store of images have their pixels, each checked when it is made.
    With a view all rows and targets have its ids, and what it drops of the targets is counted. The manifest
    and the digest stay those of the files.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        cached_shards: int = CACHED_SHARDS,
        view: VocabView | None = None,
        images: ImageViews | None = None,
    ) -> None:
        check_known(path, manifest.identity)
        self.path = path
        self.manifest = manifest
        self.view = view
        self.images = images
        self._dropped: dict[int, Dropped] = {}
        self._starts = np.array([s.start_row for s in manifest.shards], np.int64)
        self._cache: OrderedDict[int, Shard] = OrderedDict()
        self._cached_shards = cached_shards
        self._dictionaries = Dictionaries(
            path, manifest.identity.teacher.vocab_size, manifest.files
        )

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, rows={len(self)})"

    @property
    def digest(self) -> str:
        """Names the content: equal for equal identity and shards."""
        return self.manifest.content_digest

    @property
    def vocab_size(self) -> int:
        """The number of ids: the view's, or V."""
        return self.manifest.identity.teacher.vocab_size if self.view is None else self.view.size

    @property
    def dropped(self) -> Dropped | None:
        """What the view dropped of the targets of the shards that were read so far; None without either."""
        return Dropped.total(self._dropped.values())

    def locate(self, row: int) -> tuple[int, int]:
        """Shard index and place in it of a row number.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path}: row {row} is outside 0..{len(self) - 1}")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def shard(self, index: int) -> Shard:
        """Decode shard `index`, or take it from the cache."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        shard = self.read_shard(index)
        self._cache[index] = shard
        while len(self._cache) > self._cached_shards:
            self._cache.popitem(last=False)
        return shard

    def read_shard(self, index: int) -> Shard:
        """Decode shard `index` from its file, bypassing the cache, and see it through the view.

        Raises:
            IntegrityError, TargetError: name the file, the row and the way out.
            PairingError: a row holds an id that the view drops.
        """
        record = self.manifest.shards[index]
        path = self.path / record.name
        data = check_file(path, sha256=record.sha256, size=record.bytes)
        shard = decode_shard(
            data,
            self.manifest.identity,
            start_row=record.start_row,
            where=str(path),
            rows=record.rows,
            positions=record.positions,
            dictionary=self._dictionaries,
        )
        if len(shard.rows) != record.rows or shard.targets.n != record.positions:
            raise IntegrityError(
                f"{path}: holds {len(shard.rows)} rows and {shard.targets.n} positions, the manifest says "
                f"{record.rows} and {record.positions}"
            )
        if self.images is not None:
            images = self.images
            rows = [cast(ImageRow, row).bound(images) for row in shard.rows]
            return replace(shard, rows=rows)
        return shard if self.view is None else self._seen(shard, index, self.view)

    def _seen(self, shard: Shard, index: int, view: VocabView) -> Shard:
        rows = [
            view.row(cast(Row, row), where=f"{self.path}: row {shard.start_row + r}")
            for r, row in enumerate(shard.rows)
        ]
        targets, self._dropped[index] = view.targets(
            shard.targets
        )  # once a shard, however often read
        return Shard(start_row=shard.start_row, rows=rows, targets=targets)

    def file(self, name: str) -> bytes:
        """A file beside the shards, e.g. `tokenizer/tokenizer.json`, checked against its digest.

        Raises:
            KeyError: the manifest names no such file.
            IntegrityError: it is missing or altered.
        """
        record = self.manifest.files[name]
        return check_file(self.path / name, sha256=record.sha256, size=record.bytes)

    def row(self, index: int) -> StoredRow:
        """One row with its targets."""
        shard, place = self.locate(index)
        return self.shard(shard).row(place)

    def __iter__(self) -> Iterator[StoredRow]:
        """All rows, in order."""
        for i in range(len(self)):
            yield self.row(i)


def open_store(
    url: str | Path,
    *,
    cached_shards: int = CACHED_SHARDS,
    view: str | None = None,
    images: str | Sequence[str] = (),
) -> Store:
    """Open a finished store.

    Args:
        url: its folder.
        cached_shards: decoded shards to hold.
        view: `trim:N` or `map:FILE`, another vocabulary to read it in (`softlabels.views`).
        images: of a store of images, where they lie: `arrays:FILE.npz` and so on (`softlabels.images.sources`).
            Without, all can be read but their pixels.

    The manifest is read and checked, and every shard must be present at its recorded size; contents are
    checked as they are read (`softlabels verify` checks all at once).

    Raises:
        FormatError: not a store, unfinished, malformed or of a newer major version.
        IntegrityError: the manifest was altered, or a shard is missing or torn.
        ConfigError: an address this version cannot open, a view or images that do not fit the store.
        CorpusError: the images are not those that the store was made from, or come out otherwise here.
    """
    if "://" in str(url):
        raise ConfigError(
            f"{url}: only local folders can be opened by this version; copy the store first"
        )
    path = Path(url)
    manifest = load_manifest(path)
    for shard in manifest.shards:
        _check_present(path, shard)
    if view is not None and manifest.identity.domain != "causal-lm":
        raise ConfigError(
            f"--vocab {view}: another vocabulary is for causal LMs; {path} is of the domain {manifest.identity.domain}"
        )
    seen = view and VocabView.parse(view, manifest.identity.teacher.vocab_size)
    views = open_views(manifest.identity, images, where=path) if images else None
    return Store(path, manifest, cached_shards=cached_shards, view=seen or None, images=views)


def check_known(path: Path, identity: Identity) -> None:
    """Refuse what this version would misread: a minor version may add, and older readers must notice.

    Raises:
        FormatError: names what is not known.
    """
    for what, value, known in (
        ("domain", identity.domain, tuple(DOMAINS)),
        ("estimator", identity.targets.estimator, ESTIMATORS),
        ("profile", identity.encoding.profile, PROFILES),
        ("container", identity.encoding.container, tuple(CONTAINERS)),
        ("type of values", identity.encoding.values, tuple(CODECS.names())),
    ):
        if value not in known:
            raise FormatError(
                f"{path}: {what} {value!r} is not known to this version (it knows {list(known)}); upgrade softlabels"
            )
    shift = domain_module(identity.domain).LABEL_SHIFT
    if identity.label_shift != shift:
        raise FormatError(
            f"{path}: label shift {identity.label_shift} is not known to this version (it knows {shift} in the domain "
            f"{identity.domain}); upgrade softlabels"
        )


def _check_present(store: Path, shard: ShardRecord) -> None:
    path = store / shard.name
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as e:
        raise IntegrityError(
            f"{path}: missing; copy it again from the store's source (sha256 {shard.sha256[:12]}…)"
        ) from e
    except OSError as e:
        raise IntegrityError(f"{path}: cannot be read ({e.strerror})") from e
    if size != shard.bytes:
        raise IntegrityError(
            f"{path}: {size} bytes, the manifest says {shard.bytes}: torn; copy it again from its source"
        )
