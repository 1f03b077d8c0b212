"""What people type for a teacher or a corpus, as specs: paths, and names of the hub that the local cache has."""

from __future__ import annotations

import re
from pathlib import Path

from softlabels.core.local_model import HUB_ID
from softlabels.corpora import named
from softlabels.errors import ConfigError
from softlabels.teachers import TEACHERS

SPLITS = re.compile(r"(?:^|[/_.-])(train|validation|valid|test)(?=[/_.-])")
"""Where a data file's path says which split it is of."""


def teacher_spec(typed: str) -> str:
    """`hf:models/teacher` of `models/teacher`, a `.gguf` file or a name of the hub; other back-ends as typed."""
    name, colon, _ = typed.partition(":")
    return typed if colon and name in TEACHERS else f"hf:{typed}"


def corpus_specs(typed: str) -> tuple[list[str], list[str]]:
    """Corpora to train on, and of a data set of the hub its own held-out split, if it has one.

    Raises:
        ConfigError: nothing is there; of a name of the hub with the command that fetches it.
    """
    if HUB_ID.fullmatch(typed) and not Path(typed).exists():
        return _of_hub(typed)
    return named([typed]), []


def _of_hub(name: str) -> tuple[list[str], list[str]]:
    folder = _cached(name)
    local = name.rpartition("/")[2]
    fetch = f"hf download {name} --repo-type dataset --local-dir {local}"
    if folder is None:
        raise ConfigError(
            f"--corpus {name}: no such file here, and no such data set in the local hub cache; to fetch it from the "
            f"hub, run `{fetch}`, then name {local}"
        )
    files = sorted(folder.glob("**/*.parquet"))
    kind = "parquet" if files else "jsonl"
    files = files or sorted(folder.glob("**/*.jsonl"))
    if not files:
        raise ConfigError(
            f"--corpus {name}: the local hub cache ({folder}) has no .parquet or .jsonl of it; run `{fetch}`"
        )
    of = {path: _split_of(path.relative_to(folder)) for path in files}
    train = [p for p in files if of[p] == "train"] or [p for p in files if of[p] is None]
    held = [p for p in files if of[p] in ("validation", "valid")] or [
        p for p in files if of[p] == "test"
    ]
    if not train:
        raise ConfigError(
            f"--corpus {name}: no file of it says that it is for training; name those that are ({folder})"
        )
    return [f"{kind}:{p}" for p in train], [f"{kind}:{p}" for p in held]


def _split_of(path: Path) -> str | None:
    found = SPLITS.search(path.as_posix())
    return found[1] if found else None


def _cached(name: str) -> Path | None:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None
