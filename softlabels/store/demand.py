"""What whoever reads a store demands of it, checked on the very bytes that are then used.

The flow of `read_vouched`, the one way in to a store that is read:
 1. the manifest's bytes, once; with a key, the signature over these bytes;
 2. the manifest that these bytes say, and which of its shards are there (`part.py`);
 3. digest and release, compared with what was demanded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.errors import ConfigError, IntegrityError
from softlabels.format.files import Address, StoreFiles
from softlabels.format.manifest import Manifest, parse_manifest, read_manifest_bytes
from softlabels.format.part import Part, part_digest, read_part
from softlabels.format.release import parse_release
from softlabels.store.signature import PublicKey


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a store must be to be read; nothing by default.

    Raises:
        ConfigError: no such digest or release, or a release without a key.
    """

    key: Path | str | None = None
    """PEM file of the public key of whoever must have signed it."""
    digest: str | None = None
    """Its content digest, or the first 16 hexadecimal digits of it or more."""
    release: str | None = None
    """`NAME`, the name that it was signed with, or `NAME@VERSION`: of that version or a later one."""

    def __post_init__(self) -> None:
        if self.digest is not None and not re.fullmatch("[0-9a-f]{16,64}", self.digest):
            raise ConfigError(
                f"--digest {self.digest}: expected 16 to 64 lower-case hexadecimal digits, the beginning of the "
                "content digest that `softlabels inspect` shows"
            )
        if self.release is not None:
            parse_release(self.release, versioned=False)
            if self.key is None:
                raise ConfigError(
                    f"--release {self.release}: needs --key; without one anybody may have written it"
                )


@dataclass(frozen=True, kw_only=True)
class Vouched:
    """A store's manifest, read once, and what was found true of it."""

    data: bytes
    """The manifest's bytes."""
    manifest: Manifest
    """Of the whole store."""
    part: Part | None
    """Which shards are there; None: all."""
    key_sha256: str | None = None
    """Fingerprint of the key that signed these bytes; None: no key was given."""

    @property
    def digest(self) -> str:
        """Names the content that is there."""
        return part_digest(self.manifest, self.part)

    def facts(self, demand: Demand) -> dict[str, Any]:
        """What was demanded and what was found, as plain values."""
        release = self.manifest.release
        return {
            "digest": self.digest,
            "demanded_digest": demand.digest,
            "key_sha256": self.key_sha256,
            "release": None if release is None or self.key_sha256 is None else str(release),
            "demanded_release": demand.release,
            "part": None
            if self.part is None
            else {"shards": len(self.part.shards), "of": len(self.manifest.shards)},
        }


def read_vouched(files: StoreFiles, demand: Demand | None = None) -> Vouched:
    """Read a store's manifest, and refuse it unless it is what is demanded.

    Raises:
        FormatError: not a store, unfinished, malformed or of a newer major version.
        IntegrityError: altered, or not what is demanded.
        ConfigError, MissingExtraError: the key cannot be used.
    """
    demand = demand or Demand()
    data = read_manifest_bytes(files)
    manifest = parse_manifest(data, files)
    key = None if demand.key is None else PublicKey(Path(demand.key))
    if key is not None:
        key.check(files, data)
    part = read_part(files, manifest)
    found = Vouched(
        data=data,
        manifest=manifest,
        part=part,
        key_sha256=None if key is None else key.fingerprint,
    )
    _check_digest(found, demand, files.root)
    _check_release(found, demand, files.root)
    return found


def _check_digest(found: Vouched, demand: Demand, root: Path | Address) -> None:
    part, all_ = found.part, len(found.manifest.shards)
    if demand.digest is not None and not found.digest.startswith(demand.digest):
        whole = found.manifest.content_digest.startswith(demand.digest)
        raise IntegrityError(
            f"{root}: is only a part of the store of that digest: {len(part.shards)} of {all_} shards are there; pull "
            f"the rest (`softlabels pull`), or demand the part: --digest {found.digest}"
            if whole and part is not None
            else f"{root}: its content digest is {found.digest}, demanded was {demand.digest}: it is another store, or "
            "another state of it"
        )
    if part is not None and demand.key is not None and demand.digest is None:
        raise IntegrityError(
            f"{root}: is only a part of the store that was signed: {len(part.shards)} of {all_} shards are there, and "
            "the signature does not say who chose them. Pull the rest (`softlabels pull`), or name the part that you "
            f"mean, too: --digest {found.digest}"
        )


def _check_release(found: Vouched, demand: Demand, root: Path | Address) -> None:
    if demand.release is None:
        return
    name, least = parse_release(demand.release, versioned=False)
    release = found.manifest.release
    if release is None:
        raise IntegrityError(
            f"{root}: is signed without a name and version, so it may be any store of its maker; demanded was "
            f"{demand.release}. Ask the maker for `softlabels sign --release NAME@VERSION`, or name the content with "
            "--digest"
        )
    if release.name != name or (least is not None and release.order < least.order):
        what = "another store" if release.name != name else "an older one"
        raise IntegrityError(
            f"{root}: is signed as {release}, demanded was {demand.release}"
            f"{' or later' if least is not None else ''}: it is {what} of the same maker"
        )


def demands_for(
    stores: int, *, key: str | None, digest: Sequence[str], release: Sequence[str]
) -> list[Demand]:
    """The demands of each of several stores: one key for all, a digest and a release for each, in their order.

    Raises:
        ConfigError: digests or releases are given for another number of stores.
    """
    for name, given in (("digest", digest), ("release", release)):
        if given and len(given) != stores:
            raise ConfigError(
                f"--{name}: {len(given)} given for {stores} stores; give one for each --store, in the same order"
            )
    return [
        Demand(
            key=key,
            digest=digest[i] if digest else None,
            release=release[i] if release else None,
        )
        for i in range(stores)
    ]
