"""What training text and held-out text have in common: a score on what was trained on says nothing.

Whole documents are compared, and lines of 60 letters or more of what is learnt; case and blanks do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from softlabels.core.progress import Reporter
from softlabels.corpora import Corpus, Document
from softlabels.errors import CorpusError
from softlabels.start.findings import Finding, fine, look, mend
from softlabels.start.texts import SHOWN, digest_of, learnt_of

LONG = 60
"""Letters from which on a line is hardly there twice by chance."""
MANY, MANY_LINES = 0.01, 0.1
"""Shares of the held-out documents, and of their long lines, above which a held-out score is worth nothing. A head or
a foot that all files have is a line or two of each."""


def overlap(train: Sequence[Corpus], heldout: Sequence[Corpus], report: Reporter) -> Finding:
    """Compare what is trained on with what is held out."""
    report.stage("compare with held-out text", None, "documents")
    whole: dict[bytes, str] = {}
    lines: dict[bytes, str] = {}
    for document in _documents(heldout, report):
        whole.setdefault(digest_of(document), document.where)
        lines |= dict.fromkeys(_lines(document), document.where)
    same: dict[bytes, None] = {}
    alike: dict[bytes, None] = {}
    for document in _documents(train, report):
        if (digest := digest_of(document)) in whole:
            same[digest] = None
        alike |= {digest: None for digest in _lines(document) if digest in lines}
    places = list(dict.fromkeys([*(whole[d] for d in same), *(lines[d] for d in alike)]))
    where = ", ".join(places[:SHOWN]) + (", …" if len(places) > SHOWN else "")
    many = len(same) > MANY * len(whole) or len(alike) > MANY_LINES * len(lines)
    said = (
        f"{len(same):,} of {len(whole):,} held-out documents and {len(alike):,} of {len(lines):,} of their long lines "
        "are trained on"
    )
    if not places:
        return fine("overlap", said)
    finding = mend if many else look
    return finding("overlap", f"{said}: {where}", "remove them from one of the two")


def _documents(corpora: Sequence[Corpus], report: Reporter) -> Iterator[Document]:
    for corpus in corpora:
        for document in corpus.tried():
            if not isinstance(document, CorpusError) and not document.empty():
                report.advance(1)
                yield document


def _lines(document: Document) -> Iterator[bytes]:
    for part in learnt_of(document):
        for line in part.splitlines():
            if len(plain := " ".join(line.lower().split())) >= LONG:
                yield hashlib.blake2b(plain.encode(errors="surrogatepass"), digest_size=8).digest()
