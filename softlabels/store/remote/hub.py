"""`push` to a dataset repository of the Hugging Face Hub, in commits small enough for it.

The flow: list what is there, with its digests, and refuse what no record proves ours; commit the shards that are not
there, some at a time, then the files beside them; compare what is listed then with what was sent; commit the manifest
last, on condition that the branch is where we left it. A push that was broken off goes on with the shards that are not
listed. The library is huggingface_hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softlabels.core.progress import Reporter, Silent
from softlabels.core.records import sha256_of
from softlabels.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    MissingExtraError,
    RemoteError,
    StoreError,
    first_line,
)
from softlabels.format.manifest import MANIFEST, PLAN, SIGNATURE, Manifest, load_manifest
from softlabels.format.pages import pages_of
from softlabels.store.remote.addresses import hub_place
from softlabels.store.remote.push import shareable
from softlabels.store.remote.transfer import Transfer, check_grown, transferred

FILES_AT_ONCE = 50
BYTES_AT_ONCE = 20 * 2**30
"""Of one commit. The Hub recommends 50 to 100 files, and gives up on commits that take it more than a minute."""
FOLDER_LIMIT = 10_000
"""Files in one folder of a repository, at most."""


def push_to_hub(
    store: Path, url: str, *, api: Any = None, reporter: Reporter | None = None
) -> Transfer:
    """Copy a store to `hf://datasets/OWNER/NAME[@BRANCH][/FOLDER]`; the repository must be there.

    Args:
        store: its folder.
        url: where it is to be; it may hold an earlier generation of the store.
        api: an `HfApi`; None makes one, with the token of the environment or of `hf auth login`.
        reporter: receives the progress, in shards.

    Raises:
        IntegrityError: the store is damaged, or another one is there.
        ConfigError: no licence, no such repository, or more shards than a folder there holds.
        RemoteError: the Hub refuses.
    """
    manifest, beside = shareable(store)
    if len(manifest.shards) > FOLDER_LIMIT:
        raise ConfigError(
            f"{store}: {len(manifest.shards)} shards, a folder on the Hub holds at most {FOLDER_LIMIT} files; push to "
            "an object store, or build with a larger --shard-rows"
        )
    with _explained(url):
        repository = _Repository(store, url, api)
        old = repository.manifest()
        if old is not None:
            check_grown(old, manifest, url)
        names = [s.name for s in manifest.shards]
        repository.refuse_others([*names, *beside], old)
        missing = [n for n in names if not repository.has(n)]
        done, progress = len(names) - len(missing), reporter or Silent()
        progress.stage("push", len(names), "shards", done)
        for chunk in _chunks(store, missing):
            repository.commit(chunk, f"Shards {done} to {done + len(chunk)} of {len(names)}")
            done += len(chunk)
            progress.advance(len(chunk))
        changed = [n for n in beside if n != SIGNATURE and not repository.has(n)]
        for chunk in _chunks(store, changed):
            repository.commit(chunk, "Files beside the shards")
        last = [n for n in beside if n == SIGNATURE and not repository.has(n)]
        if not repository.has(MANIFEST):
            last.append(MANIFEST)
        repository.refresh()
        for name in [*names, *(n for n in beside if n != SIGNATURE)]:
            if not repository.has(name):
                raise IntegrityError(
                    f"{url}/{name}: what is listed there is not what was sent; run the same command again"
                )
        if last:
            repository.commit(last, "Manifest: the store is complete")
    moved = {n: (store / n).stat().st_size for n in (*missing, *changed, *last)}
    return transferred(manifest, moved)


def _chunks(store: Path, names: Sequence[str]) -> Iterator[list[str]]:
    """Names cut so that each commit stays within the limits."""
    chunk: list[str] = []
    size = 0
    for name in names:
        own = (store / name).stat().st_size
        if chunk and (len(chunk) == FILES_AT_ONCE or size + own > BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
        chunk.append(name)
        size += own
    if chunk:
        yield chunk


class _Repository:
    """One branch of a dataset repository, and what it holds."""

    def __init__(self, store: Path, url: str, api: Any) -> None:
        self._store, self._url = store, url
        self._repository, self._revision, folder = hub_place(url)
        self._prefix = f"{folder}/" if folder else ""
        self._api = api if api is not None else _api()
        self._where = {
            "repo_id": self._repository,
            "repo_type": "dataset",
            "revision": self._revision,
        }
        self.refresh()

    def refresh(self) -> None:
        """List what is there now."""
        self._head = self._api.repo_info(**self._where).sha
        self._there: dict[str, tuple[str, ...]] = {}
        for entry in self._api.list_repo_tree(recursive=True, **self._where):
            if (lfs := getattr(entry, "lfs", None)) is not None:
                self._there[entry.path] = ("sha256", lfs.sha256)
            elif (blob := getattr(entry, "blob_id", None)) is not None:
                self._there[entry.path] = ("git", blob)

    def has(self, name: str) -> bool:
        """Whether the very file is there, by the digest that the Hub lists."""
        found = self._there.get(self._prefix + name)
        if found is None:
            return False
        path = self._store / name
        if found[0] == "sha256":
            return sha256_of(path) == found[1]
        data = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        return blob.hexdigest() == found[1]

    def manifest(self) -> Manifest | None:
        """The manifest that is there; None: there is none."""
        if self._prefix + MANIFEST not in self._there:
            return None
        path = self._api.hf_hub_download(filename=self._prefix + MANIFEST, **self._where)
        manifest = load_manifest(Path(path).parent)
        for page in pages_of(manifest.shards):
            self._api.hf_hub_download(filename=self._prefix + page.name, **self._where)
        return manifest

    def refuse_others(self, names: Sequence[str], old: Manifest | None) -> None:
        """Refuse a place where one of these is a file that no record proves to be of the store that is there.

        Its plan, commit records and signature need no proof beside its manifest: what a commit replaces stays in the
        branch's history. Other names are nobody's concern: a repository may hold more than a store.

        Raises:
            IntegrityError: names one.
        """
        shards = set[str]() if old is None else {s.name for s in old.shards}
        for name in names:
            if self._prefix + name not in self._there or name in shards or self.has(name):
                continue
            if old is not None and self._is_recorded(name, old):
                continue
            raise IntegrityError(
                f"{self._url}/{name}: is there, and no record says that it is of this store, so nothing was sent; push "
                "to a folder of the repository (…/FOLDER) or to another, or delete it there if nobody needs it"
            )

    def _is_recorded(self, name: str, old: Manifest) -> bool:
        if name in (PLAN, SIGNATURE) or name.startswith("commits/"):
            return True
        if (record := old.files.get(name)) is None:
            return False
        path = self._api.hf_hub_download(filename=self._prefix + name, **self._where)
        return sha256_of(Path(path)) == record.sha256

    def commit(self, names: Sequence[str], message: str) -> None:
        """Add files in one commit, on condition that nobody else has committed meanwhile."""
        from huggingface_hub import CommitOperationAdd

        operations = [
            CommitOperationAdd(path_in_repo=self._prefix + n, path_or_fileobj=self._store / n)
            for n in names
        ]
        made = self._api.create_commit(
            operations=operations, commit_message=message, parent_commit=self._head, **self._where
        )
        self._head = made.oid


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as e:
        raise MissingExtraError("huggingface_hub", "remote", "pushing to the Hub") from e
    return HfApi()


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what the Hub refuses into a sentence."""
    try:
        yield
    except (StoreError, ConfigError, FormatError):
        raise
    except Exception as e:
        name = type(e).__name__
        reason = first_line(e)
        if name == "RepositoryNotFoundError":
            raise ConfigError(
                f"{url}: no such dataset repository, or no right to it ({reason}); make it first, with "
                "`hf repo create`, and log in with a token that may write"
            ) from e
        if name == "HfHubHTTPError" or isinstance(e, OSError):
            raise RemoteError(
                f"{url}: the Hub refuses ({reason}); run the same command again: what was committed is kept"
            ) from e
        raise
