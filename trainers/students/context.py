"""How long a row a student can read.

Positions beyond a student's context have no embedding, or one that was never trained; neither would be noticed.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from softlabels.errors import PairingError
from softlabels.store.reader import Store
from trainers.data.tasks import renumbers
from trainers.students import Student, check_vocab
from trainers.students.tokenizers import why_not_compared


def context_of(model: Any) -> int | None:
    """Tokens that a model of transformers reads at most; None if it has no limit, or reads no text."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            begins = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's
            return int(module.num_embeddings) - begins
    return None if most is None else int(most)


def check_student(student: Student, store: Store, *, where: str) -> str | None:
    """Refuse a student that cannot be fed a store's rows, or numbers its ids otherwise.

    Where a view renumbers the ids, that is on your word: no tokenizer is compared.

    Returns:
        Why its tokenizer could not be compared with the store's, as a clause; None: it was, or there is no need to.

    Raises:
        PairingError, TokenizerError: its vocabulary, its context or its tokenizer is another.
    """
    check_vocab(student, store, where=where)
    check_context(student, store, where=where)
    if student.source is None or store.identity.images is not None or renumbers(store):
        return None
    return why_not_compared(student.source, store, where=where)


def check_context(student: Student, store: Store, *, where: str) -> None:
    """Refuse a store with rows that are longer than the student's context.

    The manifest says how long rows may be; only where that is more than the context are rows looked at, up to the first
    that is too long.

    Raises:
        PairingError: names both numbers.
    """
    context, most = context_of(student.model), store.identity.corpus.seq_len
    if context is None or most <= context or store.identity.images is not None:
        return
    if not store.finished:
        raise PairingError(
            f"{where}: reads {context} tokens at most (its max_position_embeddings), rows of {store.path} may have "
            f"{most}, and whether one has shows when all are there; use a student with a context of {most}, or begin "
            "without --follow when the store is finished"
        )
    for stored in store:
        read = [v for name, v in stored.inputs.items() if name.endswith("input_ids")]
        length = max(map(len, read))
        if length > context:
            raise PairingError(
                f"{where}: reads {context} tokens at most (its max_position_embeddings), and row {stored.index} of "
                f"{store.path} has {length}, of up to {most} that rows may have; use a student with a context of "
                f"{most}, or build the store with --seq-len {context}"
            )
