"""What people call a document of a store: its file where the corpus was named file by file, else how it begins."""

from __future__ import annotations

import numpy as np

from softlabels.core.rows import Row
from softlabels.format.identity import CorpusRecord
from softlabels.store.reader import Store
from softlabels.store.token_text import TokenText

BEGINNING = 10
"""Tokens of a document that it is known by."""
PATTERN = frozenset("*?[")


def document_name(store: Store, document: int, row: int, text: TokenText) -> str:
    """A name for a document.

    Args:
        document: its number in the corpus.
        row: number of the first row of the store that holds some of it.
        text: of the store.
    """
    file = _file(store.manifest.identity.corpus, document)
    if file is not None:
        return file
    begins = " ".join(_beginning(store, document, row, text).split())
    return f"document {document}: {begins} …" if begins else f"document {document}"


def _file(corpus: CorpusRecord, document: int) -> str | None:
    """The file that is this document; None where the specs of the corpus do not say."""
    names = [spec.partition(":") for spec in corpus.specs]
    single = all(kind == "text" and not PATTERN & set(name) for kind, _, name in names)
    if not single or corpus.skipped_empty or corpus.skipped_short or document >= len(names):
        return None
    return names[document][2]


def _beginning(store: Store, document: int, row: int, text: TokenText) -> str:
    """The first tokens of the document that a row holds; nothing, of what is no text."""
    inputs = store.row(row).row
    ids = inputs.inputs.get("input_ids")
    if ids is None or not text.known:
        return ""
    start = 0
    if isinstance(inputs, Row):
        place = int(np.flatnonzero(inputs.documents == document)[0])
        start = int(inputs.segment_lengths[:place].sum())
        ids = ids[: start + int(inputs.segment_lengths[place])]
    return text.many(ids[start : start + BEGINNING].tolist())
