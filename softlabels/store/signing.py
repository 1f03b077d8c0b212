"""Signing a store, and checking who signed it: sigstore's model-signing with a key, over the manifest.

The manifest holds the digest of every shard, in order, and of every file beside them, the card included. A
signature over its bytes is therefore one over all of them, however large, and stays good where only some of the
shards are copied. `plan.json` and `commits/` are for builders: they are checked against each other, and not signed.

The signature is a sigstore bundle (DSSE envelope, in-toto statement) in `manifest.json.sig`; any tool that reads
those can check it. Keys are ECDSA keys on P-256, P-384 or P-521, in PEM.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from tempfile import TemporaryDirectory
from typing import Any

from softlabels.durable import replace
from softlabels.errors import ConfigError, IntegrityError, MissingExtraError
from softlabels.store.manifest import MANIFEST, SIGNATURE, load_manifest
from softlabels.store.part import refuse_part
from softlabels.store.records import read_file
from softlabels.store.verify import verify_store

__all__ = ["check_signature", "sign_store"]

SIGNATURE_LIMIT = 2**20
"""Bytes: a larger signature file is refused unparsed."""


def sign_store(store: Path, key: Path, *, password: bytes | None = None) -> Path:
    """Check every byte of a store, then sign its manifest; an earlier signature is replaced.

    Args:
        store: its folder.
        key: PEM file of the private key.
        password: of the key file, if it is encrypted.

    Returns:
        The signature file.

    Raises:
        IntegrityError: the store is damaged; nothing was signed.
        ConfigError: the key cannot be used.
        MissingExtraError: model-signing is not installed.
    """
    signing, _, hashing = _library("softlabels sign")
    config = signing.Config().set_hashing_config(_only_this_file(hashing))
    try:
        config.use_elliptic_key_signer(private_key=key, password=password)
    except Exception as e:  # OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm …
        raise _bad_key(key, "private", e) from e
    refuse_part(store)
    manifest = read_file(store / MANIFEST) if (store / MANIFEST).exists() else b""
    report = verify_store(store)
    if report.problems:
        raise IntegrityError(
            f"{report.problems[0]} ({len(report.problems)} problems in all). A damaged store is not signed: see "
            f"`softlabels verify {store}`"
        )
    with TemporaryDirectory() as folder:
        copy, signature = Path(folder, MANIFEST), Path(folder, SIGNATURE)
        copy.write_bytes(manifest)
        config.sign(copy, signature)
        replace(store / SIGNATURE, signature.read_bytes())
    if read_file(store / MANIFEST) != manifest:
        raise IntegrityError(
            f"{store / MANIFEST}: changed while it was signed, so the signature is of the old one; sign again"
        )
    return store / SIGNATURE


def check_signature(store: Path, key: Path) -> None:
    """Check that the manifest is the one that the holder of a key signed. It says nothing of the shards yet.

    Args:
        store: its folder.
        key: PEM file of the public key.

    Raises:
        IntegrityError: no signature, a damaged one, one by another key, or one of another manifest.
        ConfigError: the key cannot be used.
        MissingExtraError: model-signing is not installed.
    """
    _, verifying, hashing = _library("softlabels verify --key")
    config = verifying.Config().set_hashing_config(_only_this_file(hashing))
    try:
        config.use_elliptic_key_verifier(public_key=key)
    except Exception as e:  # as above
        raise _bad_key(key, "public", e) from e
    load_manifest(store)  # a store at all, and not torn
    where = store / SIGNATURE
    try:
        signature = read_file(where)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise IntegrityError(
            f"{where}: missing: the store is not signed; ask its maker for the signature, or verify without --key"
        ) from e
    if len(signature) > SIGNATURE_LIMIT:
        raise IntegrityError(f"{where}: {len(signature)} bytes are no signature; copy it again")
    with TemporaryDirectory() as folder:
        copy, bundle = Path(folder, MANIFEST), Path(folder, SIGNATURE)
        copy.write_bytes(read_file(store / MANIFEST))
        bundle.write_bytes(signature)
        try:
            with redirect_stdout(stderr):  # it prints remarks, and ours is one JSON object
                config.verify(copy, bundle)
        except Exception as e:  # whatever the library makes of bytes that anyone may have written
            raise IntegrityError(
                f"{where}: is no signature of this {MANIFEST} by the key {key} ({_reason(e)}). The manifest or the "
                "signature was altered, the manifest was renewed (measured, or a new card) after it was signed, or the "
                "key is another: do not train on the store before its maker has signed it again"
            ) from e


def _only_this_file(hashing: Any) -> Any:
    """Hash the one file that is given: what is hashed is decided here, never by the signature."""
    return hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _library(purpose: str) -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as e:
        raise MissingExtraError("model-signing", "sign", purpose) from e
    return signing, verifying, hashing


def _bad_key(key: Path, kind: str, e: Exception) -> ConfigError:
    return ConfigError(
        f"--key {key}: cannot be used as a {kind} key ({_reason(e)}); expected the PEM file of a {kind} ECDSA key on "
        "P-256, P-384 or P-521 (docs/trust.md says how to make a pair)"
    )


def _reason(e: Exception) -> str:
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}: {lines[0]}" if lines else type(e).__name__
