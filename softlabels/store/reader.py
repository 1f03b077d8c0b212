"""Opening a finished store and reading rows from it, with every byte checked before it is used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from softlabels.codecs import CODECS, make_codec
from softlabels.core.kept import BUILT_IN
from softlabels.core.registry import Registry, name_of
from softlabels.core.rows import Row
from softlabels.core.views import Dropped, VocabView
from softlabels.domains import DOMAINS
from softlabels.domains.image_classification import ImageRow
from softlabels.domains.image_classification.views import ImageViews
from softlabels.errors import ConfigError, FormatError, IntegrityError, PairingError
from softlabels.format.dictionaries import Dictionaries
from softlabels.format.encoding import CONTAINERS, READABLE, decode_shard, read_statistics
from softlabels.format.files import Address, Recorded, StoreFiles
from softlabels.format.identity import PACKED_ARRAYS, Identity
from softlabels.format.inputs import Inputs
from softlabels.format.manifest import Manifest, Statistics
from softlabels.format.pages import Pages, starts_of
from softlabels.format.part import Part, part_manifest
from softlabels.format.pictures import open_views
from softlabels.format.shard import Reading, Shard, StoredRow
from softlabels.format.shard_records import ShardRecord
from softlabels.store.demand import Demand, Vouched, read_vouched
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
        manifest: Manifest,
        *,
        part: Part | None = None,
        cached_shards: int = CACHED_SHARDS,
        view: VocabView | None = None,
        inputs: Inputs | None = None,
        images: ImageViews | None = None,
        vouched: Vouched | None = None,
    ) -> None:
        self.path: Path | Address = files.root
        check_known(self.path, manifest.identity)
        self.files = files
        self.manifest = manifest if part is None else part_manifest(manifest, part)
        self.vouched = vouched
        """What was found true of the manifest, where `open_store` read it."""
        self.view = view
        self.inputs = None if manifest.identity.encoding.has_inputs else inputs
        self.images = images
        self._dropped: dict[int, Dropped] = {}
        self._starts = starts_of(self.manifest.shards)
        self._cache: OrderedDict[int, Shard] = OrderedDict()
        self._cached_shards = cached_shards
        self._last = -1
        """The shard that was read last through the cache."""
        self._dictionaries = Dictionaries(
            files, manifest.identity.teacher.vocab_size, manifest.files
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
        return self._starts.find(row)

    def shard(self, index: int) -> Shard:
        """Decode shard `index`, or take it from the cache."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        if index == self._last + 1:
            self.ahead(range(index, min(index + READ_AHEAD, len(self.manifest.shards))))
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
        data = self.files.checked(_recorded(self.manifest.shards[index]))
        return self._read(index, data, keep_logp=keep_logp, named=named, targets=targets)

    def read_counted(self, index: int) -> tuple[Shard, Statistics]:
        """As `read_shard` with `named`, and the statistics that the file carries, vouched for by its digest."""
        record = self.manifest.shards[index]
        data = self.files.checked(_recorded(record))
        where = str(self.path / record.name)
        statistics = read_statistics(data, self.manifest.identity, where=where)
        return self._read(index, data, keep_logp=False, named=True), statistics

    def _read(
        self, index: int, data: bytes, *, keep_logp: bool, named: bool, targets: bool = True
    ) -> Shard:
        record = self.manifest.shards[index]
        path = self.path / record.name
        how = {"keep_logp": keep_logp, "targets": targets}
        reading = Reading.of(record, self.manifest.identity, where=str(path), **how)
        shard = decode_shard(data, reading, dictionary=self._dictionaries)
        if len(shard.rows) != record.rows or shard.targets.n != record.positions:
            raise IntegrityError(
                f"{path}: holds {len(shard.rows)} rows and {shard.targets.n} positions, the manifest says "
                f"{record.rows} and {record.positions}"
            )
        if not self.manifest.identity.encoding.has_inputs and not named:
            shard = self._joined(shard)
        if self.images is not None:
            images = self.images
            rows = [cast(ImageRow, row).bound(images) for row in shard.rows]
            return replace(shard, rows=rows)
        return shard if self.view is None else self._seen(shard, index, self.view)

    def ahead(self, shards: Sequence[int]) -> None:
        """These shards, and no others, are read next; of a remote store they are fetched meanwhile."""
        self.files.ahead(_recorded(self.manifest.shards[i]) for i in shards)

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
        if not self.manifest.identity.encoding.has_inputs and self.inputs is None:
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
            KeyError: the manifest names no such file.
            IntegrityError: it is missing or altered.
        """
        record = self.manifest.files[name]
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
    manifest = vouched.manifest
    vocab = view if vocab is None else vocab
    if vocab is not None and not DOMAINS.load(manifest.identity.domain).chained:
        raise ConfigError(
            f"--vocab {vocab}: another vocabulary is for causal LMs; {files.root} is of the domain "
            f"{manifest.identity.domain}"
        )
    seen = vocab and VocabView.parse(vocab, manifest.identity.teacher.vocab_size)
    views = open_views(manifest.identity, images, where=files.root) if images else None
    store = Store(
        files,
        manifest,
        part=vouched.part,
        cached_shards=cached_shards,
        view=seen or None,
        inputs=None if inputs is None else _inputs(files.root, manifest, inputs, cache),
        images=views,
        vouched=vouched,
    )
    if not isinstance(store.manifest.shards, Pages):
        for shard in store.manifest.shards:
            files.check_present(_recorded(shard))
    return store


def _inputs(
    path: Path | Address, manifest: Manifest, inputs: str | Path, cache: CacheOptions | None
) -> Inputs:
    if manifest.identity.encoding.has_inputs:
        raise PairingError(f"{path}: holds its inputs itself; leave out --inputs {inputs}")
    held = open_store(inputs, cache=cache)
    ours, theirs = manifest.identity, held.manifest.identity
    if not theirs.encoding.has_inputs:
        raise PairingError(f"--inputs {inputs}: holds no inputs itself, only digests of them")
    if ours.tokenizer.sha256 != theirs.tokenizer.sha256:
        raise PairingError(
            f"--inputs {inputs}: its tokenizer (sha256 {theirs.tokenizer.sha256[:12]}…) is not that of {path} (sha256 "
            f"{ours.tokenizer.sha256[:12]}…), so its ids mean other tokens"
        )
    if ours.domain != theirs.domain:
        raise PairingError(
            f"--inputs {inputs}: is of the domain {theirs.domain}, {path} of {ours.domain}"
        )
    check = partial(DOMAINS.load(ours.domain).check, identity=ours)
    return Inputs(held.files, held.manifest, held.read_shard, check)


def _recorded(shard: ShardRecord) -> Recorded:
    return Recorded(shard.name, shard.sha256, shard.bytes)


def check_known(path: Path | Address, identity: Identity) -> None:
    """Refuse what this version would misread: a minor version may add, and older readers must notice.

    Raises:
        FormatError: names what is not known.
    """
    targets, encoding = identity.targets, identity.encoding
    if (targets.declared is None) == (targets.estimator not in BUILT_IN):
        what = "not known to this version (it knows {}), and the manifest does not declare what it keeps"
        if targets.declared is not None:
            what = "known to this version, which knows {}, and the manifest declares once more what it keeps"
        raise FormatError(
            f"{path}: estimator {targets.estimator!r} is {what.format(', '.join(BUILT_IN))}; upgrade softlabels"
        )
    known: Collection[str] | Registry[Any]
    for what, value, known in (
        ("domain", identity.domain, DOMAINS),
        ("profile", encoding.profile, READABLE),
        ("container", encoding.container, CONTAINERS),
        ("type of values", name_of(encoding.values)[0], CODECS),
    ):
        if value not in known:
            names = known.names() if isinstance(known, Registry) else list(known)
            way = "upgrade softlabels"
            if encoding.packages:
                needs = " and ".join(encoding.packages)
                way = f"it says that it needs the package {needs}: install it, if you trust it"
            raise FormatError(
                f"{path}: {what} {value!r} is not known to this version (it knows {names}); {way}"
            )
    if encoding.profile == PACKED_ARRAYS and encoding.container != "zarr":
        raise FormatError(
            f"{path}: the profile {PACKED_ARRAYS!r} is of the container zarr, not {encoding.container}; copy the store "
            "again from its source"
        )
    try:
        make_codec(encoding.values)
        targets.keeps.check_grid(targets.estimator, targets.temperatures)
    except ConfigError as e:
        raise FormatError(f"{path}: its manifest says what no build does: {e}") from e
    shift = DOMAINS.load(identity.domain).label_shift
    if identity.label_shift != shift:
        raise FormatError(
            f"{path}: label shift {identity.label_shift} is not known to this version (it knows {shift} in the domain "
            f"{identity.domain}); upgrade softlabels"
        )
