"""What MODEL may be: a teacher's spec, a run, an export, a file; and whether its ids mean what the reference's do.

    hf:PATH, onnx:FILE, py:MODULE.FUNCTION, vllm:PATH, hidden:DIR, …   as `softlabels build --teacher` takes them
    RUN, EXPORT, FOLDER, FILE.gguf, FILE.onnx                          a path: what it holds decides
    NAME=MODEL                                                         either, called NAME in tables

A candidate never tokenises: it is given the reference's own ids. So the two tokenizers need not be one file; but each
id must be the same token in both. The same digest says so, or else a comparison of the two tables of tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlabels.core.devices import DTYPES
from softlabels.core.local_model import find_model
from softlabels.core.registry import split_spec
from softlabels.errors import ConfigError, TeacherError, TokenizerError
from softlabels.kld.config import KldConfig
from softlabels.store.reader import Store
from softlabels.store.token_text import NAME as TOKENIZER
from softlabels.teachers import MIB, TEACHERS, Teacher, TeacherOptions, open_teacher

NAMED = re.compile(r"([A-Za-z0-9][\w.+ -]*)=(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A candidate, not loaded yet."""

    name: str
    spec: str
    """As `open_teacher` takes it."""
    bytes: int | None
    """Of its weights on disk; None: not known."""
    saved: str | None
    """Number type that they were saved in; None: not known."""


def models_of(arguments: tuple[str, ...]) -> list[Model]:
    """Each MODEL.

    Raises:
        ConfigError: two have one name; not a spec, and no path.
        TeacherError: a folder that holds no model.
    """
    found = [_model(a) for a in arguments]
    names = [m.name for m in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two models are called {name!r}; give each a name of its own, as in NAME=MODEL"
            )
    return found


def _model(argument: str) -> Model:
    named = NAMED.fullmatch(argument)
    name, place = (named[1], named[2]) if named else ("", argument)
    spec = place if place.partition(":")[0] in TEACHERS else _spec_of(Path(place))
    kind, where = split_spec(spec, flag="MODEL")
    files = _weights(kind, where)
    return Model(
        name=name or _called(place),
        spec=spec,
        bytes=sum(f.stat().st_size for f in files) if files else None,
        saved=_saved(where) if kind == "hf" else None,
    )


def _called(place: str) -> str:
    path = place.partition("?")[0].rstrip("/")
    return Path(path.partition(":")[2] or path).name


def _spec_of(path: Path) -> str:
    """The spec of what lies at a path."""
    if path.is_file() and path.suffix in (".gguf", ".onnx"):
        return f"{'hf' if path.suffix == '.gguf' else 'onnx'}:{path}"
    if (path / "student" / "config.json").is_file():
        return f"hf:{path / 'student'}"
    if path.is_dir():
        graphs = sorted(path.glob("*.onnx"))
        if len(graphs) == 1:
            return f"onnx:{graphs[0]}"
        return f"hf:{path}"
    known = ", ".join(f"{name}:…" for name in TEACHERS.names())
    raise ConfigError(
        f"MODEL {path}: no such path; expected a run, an export, a model's folder or file, or one of {known}"
    )


def _weights(kind: str, where: str) -> list[Path]:
    """The files that hold its weights, where they can be seen."""
    if kind in ("hf", "sglang", "vllm"):
        return find_model(
            where.partition("?")[0], where=f"{kind}:{where}", error=TeacherError
        ).weight_files
    if kind == "onnx":
        file = Path(where)
        return sorted(p for p in file.parent.glob(f"{file.name}*") if p.is_file())
    return []


def _saved(where: str) -> str | None:
    """The number type in a folder's config.json."""
    folder = find_model(where, where=f"hf:{where}", error=TeacherError)
    if folder.gguf is not None:
        return "float32"
    try:
        config = json.loads((folder.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("dtype") or config.get("torch_dtype")
    return found if found in DTYPES else None


def load(model: Model, config: KldConfig, store: Store, notice: Any) -> Teacher:
    """Load a candidate, and refuse one whose ids mean something else.

    Raises:
        TeacherError, ConfigError: it cannot be loaded, or run so.
        TokenizerError: another tokenizer than the reference's.
    """
    dtype = config.dtype
    if dtype == "auto" and model.saved is not None:
        dtype = model.saved
    options = TeacherOptions(
        domain=store.manifest.identity.domain,
        device=config.device,
        dtype=dtype,
        head_bytes=None if config.head_mib is None else config.head_mib * MIB,
        notice=notice,
    )
    teacher = open_teacher(model.spec, options)
    check_same_ids(store, teacher, notice)
    return teacher


def check_same_ids(store: Store, teacher: Teacher, notice: Any) -> None:
    """Refuse a candidate to which an id of the reference is another token.

    Raises:
        TokenizerError: names the id.
    """
    ours, theirs = store.manifest.identity.tokenizer, teacher.tokenizer.record
    if ours.sha256 == theirs.sha256:
        return
    where = f"{teacher.record.spec}: its tokenizer (sha256 {theirs.sha256[:12]}…) is not that of {store.path}"
    known = vocabulary(store.file(TOKENIZER)) if TOKENIZER in store.manifest.files else None
    mine = vocabulary(teacher.tokenizer.files().get("tokenizer.json", b""))
    if known is None or mine is None:
        raise TokenizerError(
            f"{where} ({ours.sha256[:12]}…), and the two cannot be compared id by id; give a candidate with the "
            "reference's tokenizer, or make a reference with the candidate's"
        )
    for i in sorted(known.keys() | mine.keys()):
        if known.get(i) != mine.get(i):
            raise TokenizerError(
                f"{where}: id {i} is {_token(mine.get(i))}, to the reference {_token(known.get(i))}; "
                "make a reference with the candidate's tokenizer"
            )
    notice(
        f"{teacher.record.spec}: its tokenizer's file differs from the reference's, but all {len(known):,} ids are the "
        "same tokens"
    )


def _token(token: str | None) -> str:
    return "unknown" if token is None else repr(token)


def vocabulary(data: bytes) -> dict[int, str] | None:
    """Tokens by id of a `tokenizer.json`; None: it has no such table."""
    try:
        raw = json.loads(data)
        table = raw["model"]["vocab"]
        if isinstance(table, Mapping):
            found = {i: str(token) for token, i in table.items()}
        else:
            found = {i: str(token) for i, (token, _) in enumerate(table)}
        found |= {a["id"]: str(a["content"]) for a in raw.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if all(type(i) is int for i in found) else None
