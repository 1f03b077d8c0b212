"""The files of a tokenizer: the names that are written into a store, and taken from one into a student's folder.

A store says itself which files lie under `tokenizer/`, and whoever made it may have put anything there: weights, a
configuration, a program. Only names on the list below are taken, none of which a model's own files have, and of
`tokenizer_config.json` no setting that names a program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from softlabels.core.folder_record import entries
from softlabels.errors import TokenizerError

FOLDER = "tokenizer/"
"""Of a store."""
CONFIG = "tokenizer_config.json"
NAMES = frozenset(
    {
        # what transformers writes for every tokenizer
        "tokenizer.json",
        CONFIG,
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        # vocabularies of single families
        "bpe.codes",
        "byte_maps.json",
        "dict.txt",
        "emoji.json",
        "entity_vocab.json",
        "merges.txt",
        "normalizer.json",
        "prophetnet.tokenizer",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "source.spm",
        "spiece.model",
        "spm.model",
        "spm_char.model",
        "target.spm",
        "target_vocab.json",
        "tekken.json",
        "tokenizer.model",
        "vocab-src.json",
        "vocab-tgt.json",
        "vocab.bpe",
        "vocab.json",
        "vocab.txt",
        "word_pronunciation.json",
        "word_shape.json",
    }
)
_TEMPLATE = re.compile(r"additional_chat_templates/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.jinja")
_PROGRAMS = ("auto_map", "trust_remote_code")
"""Settings of tokenizer_config.json by which transformers finds a program to run."""


def is_tokenizer_file(name: str) -> bool:
    """Whether a tokenizer has a file of that name."""
    return name in NAMES or _TEMPLATE.fullmatch(name) is not None


def check_names(names: Iterable[str], *, where: object) -> None:
    """Refuse files that no tokenizer has, by a `TokenizerError` that names them."""
    strange = sorted(name for name in names if not is_tokenizer_file(name))
    if strange:
        shown = ", ".join(map(repr, strange[:5])) + (", …" if len(strange) > 5 else "")
        raise TokenizerError(
            f"{where}: holds {shown} among the tokenizer's files, which no tokenizer has and which could replace or "
            "run what is not its own; build the store again from its teacher, or ask its maker why"
        )


def without_programs(
    name: str, data: bytes, *, where: object, notice: Callable[[str], None]
) -> bytes:
    """A tokenizer's file without settings that name a program; `notice` is told if there were any."""
    if name != CONFIG:
        return data
    try:
        settings = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise TokenizerError(f"{where}: {CONFIG} is not JSON ({e})") from e
    if not isinstance(settings, dict):
        raise TokenizerError(f"{where}: {CONFIG} is not a JSON object")
    left_out = [key for key in _PROGRAMS if key in settings]
    if not left_out:
        return data
    notice(
        f"{where}: {name} names programs that would run with the tokenizer ({', '.join(left_out)}); they are left out"
    )
    kept = {key: value for key, value in settings.items() if key not in left_out}
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def read_files(folder: Path) -> dict[str, bytes]:
    """What a tokenizer was saved as, by name; folders in it included."""
    found = sorted(entries(folder).items())
    return {name: path.read_bytes() for name, path in found if not path.is_dir()}


def for_store(files: Mapping[str, bytes], notice: Callable[[str], None]) -> dict[str, bytes]:
    """A teacher's tokenizer as a store holds it, under `tokenizer/`, without settings that name a program."""
    where = "the teacher's tokenizer"
    check_names(files, where=where)
    return {
        FOLDER + name: without_programs(name, data, where=where, notice=notice)
        for name, data in files.items()
    }
