"""Opening a finished store and reading rows from it, with every byte checked before it is used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from softlabels.core.records import FileRecord
from softlabels.core.rows import Row
from softlabels.core.views import Dropped, VocabView
from softlabels.domains.image_classification import ImageRow
from softlabels.errors import ConfigError, FormatError, IntegrityError, PairingError
from softlabels.format.dictionaries import Dictionaries
from softlabels.format.encoding import decode_shard, read_statistics
from softlabels.format.files import Address, Recorded, StoreFiles
from softlabels.format.identity import Identity
from softlabels.format.manifest import Manifest, Plan, Statistics
from softlabels.format.pages import Pages, starts_of
from softlabels.format.part import Part, part_manifest
from softlabels.format.shard import Reading, Shard, StoredRow
from softlabels.format.shard_records import NumberedShard, ShardRecord
from softlabels.store.demand import Demand, Vouched, read_vouched
from softlabels.store.read_as import AS_IT_IS, ReadAs
from softlabels.store.readable import check_known
from softlabels.store.remote.cache import CacheOptions
from softlabels.store.remote.files import files_of

CACHED_SHARDS = 2
READ_AHEAD = 8
"""Shards of a remote store that are fetched while it is read from front to back."""


class Store:
    """A finished store. Make one with `open_store`.

    Shards are decoded when first touched, after their size and sha256 are found equal to the manifest's;
    the last few stay in memory. Not shared between threads: each opens its own.

    With images the rows of a store of images have their pixels, each checked when it is made.
    With a view all rows and targets have its ids, and what it drops of the targets is counted. The manifest
    and the digest stay those of the files. Of a part (`part.py`) they are the part's.
    """

    def __init__(
        self,
        files: StoreFiles,
        manifest: Manifest | Plan,
        *,
        part: Part | None = None,
        cached_shards: int = CACHED_SHARDS,
        read_as: ReadAs = AS_IT_IS,
        vouched: Vouched | None = None,
    ) -> None:
        self.path: Path | Address = files.root
        check_known(self.path, manifest.identity)
        self.files = files
        self._listing = manifest
        if isinstance(manifest, Manifest) and part is not None:
            self._listing = part_manifest(manifest, part)
        self.vouched = vouched
        """What was found true of the manifest, where `open_store` read it."""
        self.view, self.inputs, self.images = read_as
        self._dropped: dict[int, Dropped] = {}
        self._starts = starts_of(self.shards)
        self._cache: OrderedDict[int, Shard] = OrderedDict()
        self._cached_shards = cached_shards
        self._last = -1
        """The shard that was read last through the cache."""
        listed = manifest.files if self.finished else None  # a dictionary comes with the shards
        self._dictionaries = Dictionaries(files, self.identity.teacher.vocab_size, listed)

    def __len__(self) -> int:
        return self.identity.corpus.rows

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, rows={len(self)})"

    @property
    def finished(self) -> bool:
        """Whether it was when it was opened; else it is followed (`follow.py`)."""
        return isinstance(self._listing, Manifest)

    @property
    def manifest(self) -> Manifest:
        """The record of the finished store.

        Raises:
            FormatError: it is followed, and what is asked for is not known yet.
        """
        if not isinstance(self._listing, Manifest):
            raise FormatError(
                f"{self.path}: is followed, and this needs the finished store; begin when it is, without --follow"
            )
        return self._listing

    @manifest.setter
    def manifest(self, manifest: Manifest) -> None:
        self._listing = manifest

    @property
    def identity(self) -> Identity:
        """What decides what it holds."""
        return self._listing.identity

    @property
    def shards(self) -> Sequence[NumberedShard]:
        """Its shards: names, rows and positions."""
        return self._listing.shards

    @property
    def beside(self) -> Mapping[str, FileRecord]:
        """The files beside the shards."""
        return self._listing.files

    @property
    def unlabelled(self) -> bool:
        """Whether none of its rows has a label."""
        return self.manifest.statistics.labelled == 0

    @property
    def digest(self) -> str:
        """Names the content: equal for equal identity and shards."""
        return self.manifest.content_digest

    @property
    def folder(self) -> Path:
        """Where it lies, for what works on its files.

        Raises:
            ConfigError: at an address.
        """
        if not isinstance(self.path, Path):
            raise ConfigError(
                f"{self.path}: this needs a folder; copy the store with `softlabels pull`"
            )
        return self.path

    @property
    def vocab_size(self) -> int:
        """The number of ids: the view's, or V."""
        return self.identity.teacher.vocab_size if self.view is None else self.view.size

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
        return self._starts.find(row)

    def record(self, index: int) -> ShardRecord:
        """What vouches for a shard."""
        return self.manifest.shards[index]

    def is_there(self, index: int) -> bool:
        """Whether a shard is made."""
        return True

    def wait_for(self, shards: Sequence[int]) -> None:
        """Wait until these shards are made."""

    def stop_waiting(self) -> None:
        """End `wait_for`, from another thread: it raises WaitEnded, until `go_on`."""

    def shard(self, index: int) -> Shard:
        """Decode shard `index`, or take it from the cache."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        if index == self._last + 1:
            self.ahead(range(index, min(index + READ_AHEAD, len(self.shards))))
        shard = self.read_shard(index)
        self._last = index
        self._cache[index] = shard
        while len(self._cache) > self._cached_shards:
            self._cache.popitem(last=False)
        return shard

    def read_shard(
        self, index: int, *, keep_logp: bool = False, named: bool = False, targets: bool = True
    ) -> Shard:
        """Decode shard `index` from its file, bypassing the cache, and see it through the view.

        Args:
            keep_logp: keep what plain columns hold, for whoever writes them again; not through a view.
            named: be content with the digests of inputs that are elsewhere.
            targets: whether they are decoded, or the rows and what summaries say of them only.

        Raises:
            IntegrityError, TargetError: name the file, the row and the way out.
            PairingError: a row holds an id that the view drops; inputs that are elsewhere, and were not given.
        """
        record = self.record(index)
        data = self.files.checked(_recorded(record))
        return self._read(record, index, data, keep_logp=keep_logp, named=named, targets=targets)

    def read_counted(self, index: int) -> tuple[Shard, Statistics]:
        """As `read_shard` with `named`, and the statistics that the file carries, vouched for by its digest."""
        record = self.record(index)
        data = self.files.checked(_recorded(record))
        where = str(self.path / record.name)
        statistics = read_statistics(data, self.identity, where=where)
        return self._read(record, index, data, keep_logp=False, named=True), statistics

    def _read(
        self,
        record: ShardRecord,
        index: int,
        data: bytes,
        *,
        keep_logp: bool,
        named: bool,
        targets: bool = True,
    ) -> Shard:
        path = self.path / record.name
        how = {"keep_logp": keep_logp, "targets": targets}
        reading = Reading.of(record, self.identity, where=str(path), **how)
        shard = decode_shard(data, reading, dictionary=self._dictionaries)
        if len(shard.rows) != record.rows or shard.targets.n != record.positions:
            raise IntegrityError(
                f"{path}: holds {len(shard.rows)} rows and {shard.targets.n} positions, the manifest says "
                f"{record.rows} and {record.positions}"
            )
        if not self.identity.encoding.has_inputs and not named:
            shard = self._joined(shard)
        if self.images is not None:
            images = self.images
            rows = [cast(ImageRow, row).bound(images) for row in shard.rows]
            return replace(shard, rows=rows)
        return shard if self.view is None else self._seen(shard, index, self.view)

    def ahead(self, shards: Sequence[int]) -> None:
        """These shards, and no others, are read next; of a remote store they are fetched meanwhile."""
        self.files.ahead(_recorded(self.record(i)) for i in shards)

    def give_up(self) -> None:
        """Of a remote store: reads fail where they would wait for the network, until `go_on`.

        From another thread, to end reads that nobody needs any longer: they raise RemoteError.
        """
        self.files.give_up()

    def go_on(self) -> None:
        """Wait for the network again, after `give_up`."""
        self.files.go_on()

    def need_inputs(self) -> None:
        """Refuse a store whose inputs are elsewhere, and were not given.

        Raises:
            PairingError: says how to give them.
        """
        if not self.identity.encoding.has_inputs and self.inputs is None:
            raise PairingError(
                f"{self.path}: holds targets and digests of their inputs, not the inputs; give a store that holds them "
                "(softtrain run --inputs STORE, open_store(…, inputs=STORE))"
            )

    def _joined(self, shard: Shard) -> Shard:
        self.need_inputs()
        assert self.inputs is not None
        return replace(shard, rows=self.inputs.rows(shard.rows, where=str(self.path)))

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
            KeyError: no such file is recorded.
            IntegrityError: it is missing or altered.
        """
        record = self.beside[name]
        return self.files.checked(Recorded(name, record.sha256, record.bytes))

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
    vocab: str | None = None,
    inputs: str | Path | None = None,
    cache: CacheOptions | None = None,
    images: str | Sequence[str] = (),
    key: str | Path | None = None,
    digest: str | None = None,
    release: str | None = None,
    view: str | None = None,
) -> Store:
    """Open a finished store.

    Args:
        url: its folder, or its address (`s3://`, `gs://`, `https://`, `hf://`), which needs the extra `remote`.
        cached_shards: decoded shards to hold.
        vocab: `trim:N` or `map:FILE`, another vocabulary to read it in (`softlabels.core.views`).
        inputs: of a store without inputs, a store that holds them; rows are found by digest.
        cache: where files of an address are kept, and how many bytes of them; default as the environment says.
        images: of a store of images, where they lie: `arrays:FILE.npz` and so on (docs/vision.md).
            Without, all can be read but their pixels.
        key: PEM file of the public key of whoever must have signed it (`softlabels sign`), which needs the extra
            `sign`.
        digest: the content digest that it must have, or its first 16 hexadecimal digits or more.
        release: `NAME` that it must be signed with, or `NAME@VERSION`: of that version or a later one.
        view: the earlier name of `vocab`.

    The manifest is read and checked, and in a folder every shard must be present at its recorded size; contents are
    checked as they are read (`softlabels verify` checks all at once). Of an address no more is fetched than is read;
    of a store whose shards lie in pages, in a folder too, a shard is looked at when it is read.

    Raises:
        FormatError: not a store, unfinished, malformed or of a newer major version.
        IntegrityError: the manifest was altered, a shard is missing or torn, or it is not what was demanded.
        RemoteError: the address does not answer, or not to us.
        ConfigError: no such kind of address, or a key, vocabulary or images that cannot be used.
        CorpusError: the images are not those that the store was made from, or come out otherwise here.
    """
    files = files_of(url, cache)
    vouched = read_vouched(files, Demand(key=key, digest=digest, release=release))
    vocab = view if vocab is None else vocab
    store = Store(
        files,
        vouched.manifest,
        part=vouched.part,
        cached_shards=cached_shards,
        read_as=ReadAs.asked(
            files.root,
            vouched.manifest.identity,
            vocab=vocab,
            inputs=None if inputs is None else partial(open_store, inputs, cache=cache),
            images=images,
        ),
        vouched=vouched,
    )
    if not isinstance(store.manifest.shards, Pages):
        for shard in store.manifest.shards:
            files.check_present(_recorded(shard))
    return store


def _recorded(shard: ShardRecord) -> Recorded:
    return Recorded(shard.name, shard.sha256, shard.bytes)
