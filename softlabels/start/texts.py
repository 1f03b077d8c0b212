"""One reading of a whole corpus, no teacher and no tokenizer: what is broken, empty, garbled or there twice.

Reads what the build will read, through the same corpus classes, and goes on after a bad record where the kind of
corpus can.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from softlabels.core.progress import Reporter
from softlabels.corpora import Corpus, Document
from softlabels.errors import CorpusError
from softlabels.start.findings import Finding, counted, fine, look, mend

SHOWN = 3
"""Places that a finding names."""
GARBLED = re.compile("\ufffd|\x00|\u00c3[\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u2122]")
"""Replacement characters, zero bytes, and UTF-8 that was read as Latin-1 or Windows-1252 on the way here."""


@dataclass
class Reading:
    """What one pass over a corpus came to."""

    documents: int = 0
    letters: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Documents of each kind."""
    broken: list[str] = field(default_factory=list)
    """The first messages about records that are none."""
    broken_count: int = 0
    empty: list[str] = field(default_factory=list)
    empty_count: int = 0
    garbled: list[str] = field(default_factory=list)
    garbled_count: int = 0
    repeated: int = 0
    """Documents that are the same as an earlier one, letter by letter."""
    seen: set[bytes] = field(default_factory=set)
    """Digests of the documents, 8 bytes each."""

    def note(self, places: str, where: str) -> None:
        """Count a document, and remember where the first few stand."""
        setattr(self, f"{places}_count", getattr(self, f"{places}_count") + 1)
        if len(kept := getattr(self, places)) < SHOWN:
            kept.append(where)


def content_of(document: Document) -> str:
    """All of a document's text."""
    return "\n".join(parts_of(document))


def parts_of(document: Document) -> list[str]:
    """Its texts: one, a prompt and a completion, the turns of a conversation, or words."""
    if document.messages is not None:
        return [str(m.get("content") or "") for m in document.messages]
    if document.completion is not None:
        return [document.prompt or "", document.completion]
    if document.words is not None:
        return [" ".join(document.words)]
    return [document.text or ""]


def learnt_of(document: Document) -> list[str]:
    """Of its texts those that are learnt."""
    if document.messages is not None:
        return [str(m.get("content") or "") for m in document.messages if m["role"] == "assistant"]
    return [document.completion] if document.completion is not None else parts_of(document)


def kind_of_document(document: Document) -> str:
    """What it is read as."""
    if document.messages is not None:
        return "conversation"
    if document.completion is not None:
        return "prompt with completion"
    if document.ids is not None:
        return "list of token ids"
    return "text in words" if document.words is not None else "text"


def digest_of(document: Document) -> bytes:
    """Eight bytes that tell documents apart by what they say; case and blanks do not count."""
    if document.ids is not None:
        return hashlib.blake2b(document.ids.tobytes(), digest_size=8).digest()
    text = json.dumps([" ".join(p.lower().split()) for p in parts_of(document)])
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


def read_all(corpora: Sequence[Corpus], report: Reporter) -> Reading:
    """Read every document once."""
    reading = Reading()
    sizes = [c.read.total for c in corpora if c.read is not None]
    report.stage("read", sum(sizes) if len(sizes) == len(corpora) else None, "bytes")
    for corpus in corpora:
        before = corpus.read.done if corpus.read is not None else 0
        for document in corpus.tried():
            _take(document, reading)
            if corpus.read is not None:
                done, before = corpus.read.done - before, corpus.read.done
                report.advance(done)
    return reading


def _take(document: Document | CorpusError, reading: Reading) -> None:
    if isinstance(document, CorpusError):
        reading.note("broken", str(document))
        return
    reading.documents += 1
    reading.kinds[kind_of_document(document)] += 1
    if document.empty():
        reading.note("empty", document.where)
        return
    text = content_of(document)
    reading.letters += len(text)
    if GARBLED.search(text):
        reading.note("garbled", document.where)
    digest = digest_of(document)
    reading.repeated += digest in reading.seen
    reading.seen.add(digest)


def findings_of(reading: Reading, *, skip_empty: bool) -> Iterator[Finding]:
    """What the reading says."""
    kinds = ", ".join(counted(n, k) for k, n in reading.kinds.most_common())
    if reading.broken_count:
        more = reading.broken_count - len(reading.broken)
        said = "\n".join(reading.broken) + (f"\nand {more:,} more" if more else "")
        each = "record" if reading.broken_count == 1 else "records"
        yield mend("records", f"{reading.broken_count:,} {each} cannot be read", said)
    if not reading.documents:
        yield mend("records", "no document can be read", "see docs/corpora.md for what is read")
        return
    yield fine("records", f"{kinds}, {reading.letters:,} letters")
    if reading.empty_count:
        found = f"{counted(reading.empty_count, 'document')} without text: {_places(reading.empty)}"
        if skip_empty:
            yield fine("empty", f"{found}; left out (--skip-empty)")
        else:
            yield mend("empty", found, "remove them, or build with --skip-empty, which counts them")
    if reading.garbled_count:
        share = reading.garbled_count / reading.documents
        yield look(
            "encoding",
            f"{counted(reading.garbled_count, 'document')} ({share:.1%}) with characters that a wrong encoding leaves: "
            f"{_places(reading.garbled)}",
            "read the files again in the encoding that they were written in, and save them as UTF-8",
        )
    elif not any("UTF-8" in message for message in reading.broken):
        yield fine("encoding", "UTF-8, nothing garbled")
    if reading.repeated:
        yield look(
            "repeats",
            f"{counted(reading.repeated, 'document')} ({reading.repeated / reading.documents:.1%}) said before, word "
            "for word",
            "the teacher is run over each of them again; remove them unless they are to weigh more",
        )


def _places(places: Sequence[str]) -> str:
    return ", ".join(places) + (", …" if len(places) == SHOWN else "")
