"""`convert`: the same rows and targets in another profile, container or type of values."""

from __future__ import annotations

from pathlib import Path

import msgspec

from softlabels.algebra.recode import recoded
from softlabels.algebra.rewrite import rewrite, survey
from softlabels.algebra.sources import files_of, open_source
from softlabels.core.progress import Reporter, Silent
from softlabels.errors import ConfigError
from softlabels.format.dictionaries import DICTIONARY
from softlabels.format.identity import Identity
from softlabels.format.manifest import Manifest
from softlabels.format.shard import Shard
from softlabels.making.dictionary import enough, given_dictionary, trained
from softlabels.store.reader import Store


def convert(
    source: Path | str,
    out: Path | str,
    *,
    profile: str | None = None,
    container: str | None = None,
    values: str | None = None,
    dictionary: str = "auto",
    reporter: Reporter | None = None,
) -> Manifest:
    """Write a store in another encoding.

    Args:
        profile: `open` or `packed`; None: as it is.
        container: `parquet` or `zarr`; None: as it is.
        values: codec of the stored numbers; None: as it is.
        dictionary: of packed shards: `auto` trains one on the first 200,000 positions, where it pays; `none`; or
            the path of one, or of a store that has one.

    Raises:
        ConfigError: an unknown name, or nothing to change.
        TargetError: a value that the new codec cannot hold.
        PlanError: `out` holds something else.
        StoreError: the source is damaged; the disk is full, …
    """
    report, out = reporter or Silent(), Path(out)
    store = open_source(Path(source), out)
    old = store.manifest.identity
    encoding = recoded(old, profile=profile, container=container, values=values)
    parts = ("profile", "container", "values")
    if all(getattr(encoding, p) == getattr(old.encoding, p) for p in parts):
        raise ConfigError(
            f"convert: {store.path} is {encoding.profile}, {encoding.container}, {encoding.values} already; say what "
            "to change: --profile, --container or --values"
        )
    found = survey(store, report, None)
    identity = msgspec.structs.replace(old, encoding=encoding)
    files = files_of(store, "tokenizer")
    parameters = {p: getattr(encoding, p) for p in parts}
    if not encoding.plain:
        book = _dictionary(store, identity, dictionary, report)
        if book is not None:
            files[DICTIONARY] = book
            changed = msgspec.structs.replace(encoding, dictionary_shards=0)
            identity = msgspec.structs.replace(identity, encoding=changed)
        parameters["dictionary"] = dictionary if dictionary in ("auto", "none") else "given"
    elif dictionary not in ("auto", "none"):
        raise ConfigError(f"--dictionary {dictionary}: belongs to --profile packed")
    return rewrite(found, out, identity, "convert", parameters, report, files=files)


def _dictionary(store: Store, identity: Identity, asked: str, report: Reporter) -> bytes | None:
    """The file of the dictionary that all shards are coded with; None: without."""
    if asked == "none":
        return None
    if asked != "auto":
        return given_dictionary(asked, identity.teacher.vocab_size)
    report.notice("training a dictionary on the first shards")
    shards: list[Shard] = []
    for i in range(len(store.manifest.shards)):
        shards.append(store.read_shard(i))
        if sum(s.targets.n for s in shards) >= enough(identity.targets.k):
            break
    book = trained(shards, identity, report, left=identity.corpus.positions)
    return book.to_bytes() if len(book.order) else None
