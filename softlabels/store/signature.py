"""Checking who signed a store: sigstore's model-signing with a key, over the manifest's bytes as they were read.

The bytes that are checked are those that the caller goes on with: no file is looked at twice, so nobody can
exchange it in between. What a signature is, and how one is made, is said in `signing.py`.
"""

from __future__ import annotations

import hashlib
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from tempfile import TemporaryDirectory
from typing import Any

from softlabels.errors import ConfigError, IntegrityError, MissingExtraError, first_line
from softlabels.format.files import StoreFiles
from softlabels.format.manifest import MANIFEST, SIGNATURE

SIGNATURE_LIMIT = 2**20
"""Bytes: a larger signature file is refused unparsed."""
KEY_LIMIT = 2**16
"""Bytes of a PEM file."""


class PublicKey:
    """The key of whoever is trusted, read once from its PEM file; `ConfigError` if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _, self._verifying, self._hashing = model_signing("--key")
        try:
            from cryptography.hazmat.primitives.serialization import (
                Encoding,
                PublicFormat,
                load_pem_public_key,
            )

            with path.open("rb") as file:
                self._pem = file.read(KEY_LIMIT)
            key = load_pem_public_key(self._pem)
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            self.fingerprint = hashlib.sha256(der).hexdigest()
            """sha256 of the key itself (DER), however its file is spelled."""
            with TemporaryDirectory() as folder:
                self._config(Path(folder))
        except Exception as e:  # OSError, ValueError, TypeError, UnsupportedAlgorithm …
            raise bad_key(path, "public", e) from e

    def _config(self, folder: Path) -> Any:
        copy = folder / "key.pem"
        copy.write_bytes(self._pem)
        config = self._verifying.Config().set_hashing_config(only_this_file(self._hashing))
        config.use_elliptic_key_verifier(public_key=copy)
        return config

    def check(self, files: StoreFiles, manifest: bytes) -> None:
        """Check that these bytes are the manifest that the holder of the key signed; it says nothing of shards yet.

        Raises:
            IntegrityError: no signature, a damaged one, one by another key, or one of another manifest.
        """
        where = files.root / SIGNATURE
        try:
            signature = files.record(SIGNATURE)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise IntegrityError(
                f"{where}: missing: the store is not signed; ask its maker for the signature, or go on without --key"
            ) from e
        if len(signature) > SIGNATURE_LIMIT:
            raise IntegrityError(f"{where}: {len(signature)} bytes are no signature; copy it again")
        with TemporaryDirectory() as name:
            folder = Path(name)
            copy, bundle = folder / MANIFEST, folder / SIGNATURE
            copy.write_bytes(manifest)
            bundle.write_bytes(signature)
            try:
                with redirect_stdout(stderr):  # it prints remarks, and ours is one JSON object
                    self._config(folder).verify(copy, bundle)
            except Exception as e:  # what the library makes of bytes that anyone may have written
                reason = f"{type(e).__name__}: {first_line(e)}"
                raise IntegrityError(
                    f"{where}: is no signature of this {MANIFEST} by the key {self.path} ({reason}). The manifest "
                    "or the signature was altered, the manifest was renewed (measured, or a new card) after it was "
                    "signed, or the key is another: do not train on the store before its maker has signed it again"
                ) from e


def only_this_file(hashing: Any) -> Any:
    """Hash the one file that is given: what is hashed is decided here, never by the signature."""
    return hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def model_signing(purpose: str) -> tuple[Any, Any, Any]:
    """The library's modules `signing`, `verifying` and `hashing`; `MissingExtraError` without it."""
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as e:
        raise MissingExtraError("model-signing", "sign", purpose) from e
    return signing, verifying, hashing


def bad_key(key: Path, kind: str, e: Exception) -> ConfigError:
    """What to say of a key file that cannot be used."""
    return ConfigError(
        f"--key {key}: cannot be used as a {kind} key ({type(e).__name__}: {first_line(e)}); "
        f"expected the PEM file of a {kind} ECDSA key on P-256, P-384 or P-521 (docs/trust.md says how to make a pair)"
    )
