"""A teacher as its files describe it, its weights unread: tokenizer, context, vocabulary, parameters, licence.

Enough to make a build's rows, and so to meet in seconds whatever would stop a build before its first shard. Only `hf:`
says so much about itself; of any other back-end nothing is known until it is loaded.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from softlabels.core.local_model import LocalModel, find_model, loading, offline_transformers
from softlabels.core.registry import name_of, split_spec
from softlabels.domains import DOMAINS
from softlabels.errors import TeacherError
from softlabels.format.identity import TeacherRecord
from softlabels.teachers import Teacher, TeacherTokenizer
from softlabels.teachers.encoder_tokenizer import EncoderTokenizer
from softlabels.teachers.hf_source import context_of
from softlabels.teachers.tokenizer import HFTokenizer


class UnloadedTeacher(Teacher):
    """Makes rows as the teacher does, and has no logits.

    Args:
        spec: `hf:PATH`.
        domain: what it is asked for.

    Raises:
        TeacherError: no such model, or one whose configuration or tokenizer cannot be loaded.
        MissingExtraError: transformers (or gguf) is not installed.
    """

    chats: bool
    """Whether its tokenizer has a chat template."""
    licence: str | None
    """As the model's card says."""

    def __init__(self, spec: str, domain: str) -> None:
        path, _ = name_of(split_spec(spec, flag="--teacher")[1])
        where = f"hf:{path}"
        found = find_model(path, where=where, error=TeacherError)
        transformers = offline_transformers(f"--teacher {where}")
        with loading(where, TeacherError):
            config = transformers.AutoConfig.from_pretrained(found.folder, **found.settings)
            raw = transformers.AutoTokenizer.from_pretrained(found.folder, **found.settings)
        self.context = context_of(config)
        self.chats = getattr(raw, "chat_template", None) is not None
        self.tokenizer: TeacherTokenizer
        if (facts := DOMAINS.load(domain)).chained:
            self.tokenizer = HFTokenizer(raw)
        else:
            self.tokenizer = EncoderTokenizer(raw, longest=self.context)
        vocabulary = int(config.get_text_config().vocab_size)
        if facts.classified:
            self.classes = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        self.licence = _licence(found.folder)
        self.weights_bytes = sum(p.stat().st_size for p in found.weight_files)
        self.record = TeacherRecord(
            spec=where,
            name=found.name,
            revision=None,
            weights_sha256="",
            dtype="",
            device="",
            engine="",
            vocab_size=vocabulary if self.classes is None else len(self.classes),
            parameters=parameters_of(found),
        )

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """None are there."""
        raise TeacherError(f"{self.record.spec}: its weights were not loaded")


def unloaded(spec: str | Sequence[str], domain: str) -> UnloadedTeacher | None:
    """The teacher of a build, of several the first; None: it is of a kind that is not known before it is loaded."""
    first = spec if isinstance(spec, str) else spec[0]
    name, _ = split_spec(first, flag="--teacher")
    if name != "hf" or DOMAINS.load(domain).transformers is None:
        return None
    return UnloadedTeacher(re.sub(r"=[0-9.e+-]+$", "", first) if first != spec else first, domain)


def parameters_of(model: LocalModel) -> int:
    """How many a model has, counted from the heads of its files; 0 where these do not say."""
    if model.gguf is not None:
        from gguf import GGUFReader

        return sum(int(t.n_elements) for t in GGUFReader(model.folder / model.gguf).tensors)
    files = model.weight_files
    if any(p.suffix != ".safetensors" for p in files):
        return 0
    return sum(math.prod(shape) for path in files for shape in _shapes(path))


def _shapes(path: Path) -> list[list[int]]:
    """Of the tensors of a safetensors file: its first 8 bytes say how long the JSON is that lists them."""
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > path.stat().st_size:
                raise TeacherError(f"{path}: is truncated; fetch the model again")
            head = json.loads(f.read(length))
        return [t["shape"] for name, t in head.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as e:
        raise TeacherError(f"{path}: its head cannot be read ({e}); fetch the model again") from e


def _licence(folder: Path) -> str | None:
    """What the YAML head of the model's card says."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    said = re.search(r"^license: *([^\s#]+)", head[1], re.MULTILINE) if head else None
    return said[1].strip("\"'") if said else None
