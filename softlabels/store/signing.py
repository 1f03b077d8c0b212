"""Signing a store: sigstore's model-signing with a key, over the manifest. `signature.py` checks it.

The manifest holds the digest of every shard, in order, and of every file beside them, the card included. A
signature over its bytes is therefore one over all of them, however large, and stays good where only some of the
shards are copied. `plan.json` and `commits/` are for builders: they are checked against each other, and not signed.

A signature alone does not tell a store from an older one of the same maker, so a name and a version may be put into
the manifest before it is signed (`release.py`).

The signature is a sigstore bundle (DSSE envelope, in-toto statement) in `manifest.json.sig`; any tool that reads
those can check it. Keys are ECDSA keys on P-256, P-384 or P-521, in PEM.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from softlabels.core.durable import replace, sweep
from softlabels.core.records import FORMAT_VERSION, canonical, minor_of, read_file
from softlabels.errors import IntegrityError
from softlabels.format.files import LocalFiles
from softlabels.format.manifest import (
    MANIFEST,
    SIGNATURE,
    Manifest,
    parse_manifest,
    read_manifest_bytes,
)
from softlabels.format.part import refuse_part
from softlabels.format.release import Release, parse_release
from softlabels.making.amend import amend
from softlabels.store.signature import bad_key, model_signing, only_this_file
from softlabels.store.verify import verify_store


def sign_store(
    store: Path, key: Path, *, password: bytes | None = None, release: str | None = None
) -> Release | None:
    """Check every byte of a store, then sign its manifest; an earlier signature is replaced.

    Args:
        store: its folder.
        key: PEM file of the private key.
        password: of the key file, if it is encrypted.
        release: `NAME@VERSION` to sign it as, which renews manifest and card; None: as what it was signed before.

    Returns:
        The name and version that it is signed as; None: none.

    Raises:
        IntegrityError: the store is damaged; nothing was signed.
        ConfigError: the key cannot be used, or no such release.
        MissingExtraError: model-signing is not installed.
    """
    named = None if release is None else parse_release(release, versioned=True)[1]
    signing, _, hashing = model_signing("softlabels sign")
    config = signing.Config().set_hashing_config(only_this_file(hashing))
    try:
        config.use_elliptic_key_signer(private_key=key, password=password)
    except Exception as e:  # OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm …
        raise bad_key(key, "private", e) from e
    refuse_part(store)
    files = LocalFiles(store)
    data = read_manifest_bytes(files)
    manifest = parse_manifest(data, files)
    sweep(store)  # what a process that died while it signed has left would count as a problem
    report = verify_store(store)
    if report.problems:
        raise IntegrityError(
            f"{report.problems[0]} ({len(report.problems)} problems in all). A damaged store is not signed: see "
            f"`softlabels verify {store}`"
        )
    if named is not None and named != manifest.release:
        manifest = amend(store, partial(_released, checked=manifest, release=named))
        data = canonical(manifest)
    with TemporaryDirectory() as folder:
        copy, signature = Path(folder, MANIFEST), Path(folder, SIGNATURE)
        copy.write_bytes(data)
        config.sign(copy, signature)
        replace(store / SIGNATURE, signature.read_bytes())
    if read_file(store / MANIFEST) != data:
        raise IntegrityError(
            f"{store / MANIFEST}: changed while it was signed, so the signature is of the old one; sign again"
        )
    return manifest.release


def _released(manifest: Manifest, *, checked: Manifest, release: Release) -> Manifest:
    if manifest.digest != checked.digest:
        raise IntegrityError(
            "its manifest changed while it was checked; nothing was signed, sign again"
        )
    version = max(manifest.version, FORMAT_VERSION, key=minor_of)
    return msgspec.structs.replace(manifest, release=release, version=version)
