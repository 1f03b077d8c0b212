"""What a student's configuration says of its context and vocabulary, against rows and teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softlabels.core.local_model import find_model, loading, offline_transformers
from softlabels.core.registry import name_of, split_spec
from softlabels.errors import ConfigError
from softlabels.start.findings import Finding, fine, mend

FITTED = ("new", "layers-of")
"""Kinds of students that are made to fit their store, or take a model's own context."""


def findings_of_student(spec: str, *, rows: int, vocab_size: int) -> Iterator[Finding]:
    """A student against the rows and the vocabulary that it will meet.

    Args:
        spec: as of `softtrain run --student`.
        rows: tokens in a row, at most.
        vocab_size: the teacher's.

    Raises:
        ConfigError: no such student.
    """
    kind, argument = split_spec(spec, flag="--student", example="new:10M")
    if kind in FITTED:
        yield fine("student", f"{spec} is made to fit the store")
        return
    if kind not in ("hf", "hf-config"):
        yield fine("student", f"{spec} is not looked at")
        return
    config = _config(kind, argument, spec)
    context, own = config.get("max_position_embeddings"), config.get("vocab_size")
    if isinstance(context, int) and context < rows:
        yield mend(
            "student",
            f"{spec} reads {context:,} tokens at a time, and rows have up to {rows:,}",
            f"build with seq_len = {context}, or take a student with a longer context",
        )
    if isinstance(own, int) and own < vocab_size:
        yield mend(
            "student",
            f"{spec} has {own:,} ids, the teacher {vocab_size:,}",
            "take a student with the teacher's tokenizer, or read the store in its vocabulary (docs/vocabularies.md)",
        )
    elif not isinstance(context, int) or context >= rows:
        yield fine("student", f"{spec}: context {context or 'unlimited'}, {own or 'unknown'} ids")


def _config(kind: str, argument: str, spec: str) -> dict[str, Any]:
    where = f"--student {spec}"
    if kind == "hf-config":
        try:
            found = json.loads(Path(argument).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ConfigError(f"{where}: cannot be read as JSON ({e})") from e
        if not isinstance(found, dict):
            raise ConfigError(f"{where}: expected an object, found {type(found).__name__}")
        return found
    model = find_model(name_of(argument)[0], where=where, error=ConfigError)
    with loading(where, ConfigError):
        config = offline_transformers(where).AutoConfig.from_pretrained(
            model.folder, **model.settings
        )
        text = config.get_text_config()
    return {n: getattr(text, n, None) for n in ("max_position_embeddings", "vocab_size")}
