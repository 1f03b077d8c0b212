"""The dictionaries of a store: found by their sha256, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from softlabels.codecs.codebook import DICTIONARY_LIMIT, Codebook
from softlabels.core.records import FileRecord, read_file
from softlabels.errors import IntegrityError, UnreadableError
from softlabels.format.files import Address, LocalFiles, Recorded, StoreFiles

FOLDER = "dictionaries"
DICTIONARY = f"{FOLDER}/00000.bin"
"""The one that a build makes."""


class Dictionaries:
    """Gives the dictionary that a shard names.

    Args:
        files: the files that a manifest lists; None: whatever lies in the folder, while a store is made.
    """

    def __init__(
        self,
        store: Path | StoreFiles,
        vocab_size: int,
        files: Mapping[str, FileRecord] | None = None,
    ) -> None:
        self._source = LocalFiles(store) if isinstance(store, Path) else store
        self._vocab_size, self._files = vocab_size, files
        self._read: dict[str, Codebook] = {}

    def __call__(self, sha256: str) -> Codebook:
        """The dictionary of a digest; `IntegrityError` if it is missing, altered, or of another vocabulary."""
        if sha256 not in self._read:
            path, data = self._find(sha256)
            book = Codebook.from_bytes(data, vocab_size=self._vocab_size, where=str(path))
            self._read[sha256] = book
        return self._read[sha256]

    def _find(self, sha256: str) -> tuple[Path | Address, bytes]:
        root = self._source.root
        missing = IntegrityError(
            f"{root / FOLDER}: holds no dictionary of sha256 {sha256[:12]}…, without which shards cannot be "
            "decoded; copy it again from the store's source"
        )
        if self._files is not None:
            for name, record in self._files.items():
                if record.sha256 == sha256 and name.startswith(f"{FOLDER}/"):
                    if record.bytes > DICTIONARY_LIMIT:
                        raise IntegrityError(
                            f"{root / name}: {record.bytes} bytes, a dictionary has at most {DICTIONARY_LIMIT}"
                        )
                    found = Recorded(name, sha256, record.bytes)
                    return root / name, self._source.checked(found)
            raise missing
        assert isinstance(root, Path), "a store is made in a folder"
        for path in sorted((root / FOLDER).glob("*.bin")):
            try:
                data = read_file(path) if path.stat().st_size <= DICTIONARY_LIMIT else b""
            except UnreadableError:
                raise  # it may be the one
            except OSError:
                continue  # a link that leads nowhere, a pipe, …: not the one that is looked for
            if hashlib.sha256(data).hexdigest() == sha256:
                return path, data
        raise missing
