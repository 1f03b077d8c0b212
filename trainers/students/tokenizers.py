"""Whether a pretrained student's ids mean what they mean in a store.

1. Where both have a `tokenizer.json`, it is read as JSON and never loaded: kind, vocabulary and merges must be equal.
2. A student's folder without one (`vocab.txt`, `tokenizer.model`, `vocab.json`), or a GGUF file, has its tokenizer
   loaded by the library that loads its weights.
3. Added tokens included, no id may have two tokens and no token two ids. Ids that one side alone has are left: members
   of a family end in other special tokens, and heads are wider than tokenizers.
4. What cannot be compared is said, and whoever asked decides. So are added tokens that are called otherwise: a family's
   next version may have named what was reserved, which is harmless where no text has it, and another's marks are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from softlabels.core.local_model import loading, offline_transformers
from softlabels.errors import TokenizerError
from softlabels.store.reader import Store
from softlabels.store.tokenizer_files import CONFIG, FOLDER, NAMES

FILE = "tokenizer.json"
BESIDES = frozenset(
    {CONFIG, "added_tokens.json", "special_tokens_map.json", "normalizer.json"}
    | {"chat_template.jinja", "chat_template.json"}
)
"""Files of a tokenizer that hold no vocabulary."""


class Vocabulary(NamedTuple):
    """What a tokenizer's ids mean."""

    ids: Mapping[str, int]
    """Of each token, added ones included."""
    added: Set[str]
    """Tokens that were added to a vocabulary, such as marks of chats."""
    model: tuple[Any, ...] | None
    """Kind, vocabulary and merges; None of one that was loaded, whose spelling of these is the library's."""


def why_not_compared(source: Path, store: Store, *, where: str) -> str | None:
    """Refuse a student whose tokenizer is not the store's.

    Args:
        source: folder of the student's weights, or their GGUF file.
        store: of tokens.
        where: how a message begins.

    Returns:
        Why the two cannot be compared, or how they call added tokens, as a clause; None: they are one.

    Raises:
        TokenizerError: they differ.
    """
    name = FOLDER + FILE
    if name not in store.beside:
        return f"{store.path} holds no {FILE}"
    theirs = _read(store.file(name), str(store.path / name))
    path = source / FILE
    if path.is_file():
        mine = _read(path.read_bytes(), str(path))
    else:
        path = source
        try:
            mine = _loaded(source, where)
        except TokenizerError as e:
            return str(e)
    clashes = list(_clashes(mine, theirs))
    clash = next((said for said, named in clashes if not named), None)
    if clash is None and mine.model is not None and mine.model != theirs.model:
        clash = "the vocabularies or merges differ"
    if clash is not None:
        raise TokenizerError(
            f"{where}: {path} is not the tokenizer that {store.path} was made with, so the same "
            f"id means another token ({clash}); use a student of the teacher's own family, or new:SIZE"
        )
    return f"{path} calls added tokens otherwise ({clashes[0][0]})" if clashes else None


def _clashes(mine: Vocabulary, theirs: Vocabulary) -> Iterator[tuple[str, bool]]:
    """Ids of theirs, from the lowest on, that mean another token in mine, or whose token has another id there.

    Yields:
        What is said of one, and whether it is only called otherwise: an added token that the other side does not have.
    """
    tokens = {i: token for token, i in mine.ids.items()}
    for token, i in sorted(theirs.ids.items(), key=lambda of: of[1]):
        other, at = tokens.get(i, token), mine.ids.get(token, i)
        if other != token:
            alone = other in mine.added - theirs.ids.keys()
            named = alone and token in theirs.added - mine.ids.keys()
            yield f"id {i} is {other!r}, the store's is {token!r}", named
        elif at != i:
            yield f"{token!r} is id {at}, the store's is {i}", False


def _read(data: bytes, where: str) -> Vocabulary:
    """Of a `tokenizer.json`, which is not loaded."""
    try:
        content = json.loads(data)
        model = content["model"]
        vocab = model["vocab"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
        listed = vocab if isinstance(vocab, dict) else {t: i for i, (t, *_) in enumerate(vocab)}
        added = {t["content"]: t["id"] for t in content.get("added_tokens") or ()}
        ids = {t: i for t, i in {**listed, **added}.items() if isinstance(i, int)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise TokenizerError(f"{where}: not a tokenizer.json ({e})") from e
    return Vocabulary(ids, added.keys() - listed.keys(), (model.get("type"), vocab, merges))


def _loaded(source: Path, where: str) -> Vocabulary:
    """Of a folder without a `tokenizer.json`, or a GGUF file; `TokenizerError`, a clause, if there is none to load."""
    gguf = source.suffix == ".gguf"
    if not gguf and not any((source / name).is_file() for name in NAMES - BESIDES):
        raise TokenizerError(f"{source} holds no tokenizer")
    settings = {"gguf_file": source.name} if gguf else {}
    folder = source.parent if gguf else source
    library = offline_transformers(where)
    with loading(f"the tokenizer of {source}", TokenizerError):
        tokenizer = library.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, **settings
        )
        added = tokenizer.get_added_vocab().keys()
        return Vocabulary(tokenizer.get_vocab(), set(added), None)
