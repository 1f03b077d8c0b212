"""How long the texts are in the teacher's tokens, against rows and contexts: the build's own packing of a beginning.

The rows are made by the domain's row maker with a teacher whose weights were not loaded, so that whatever the build
would refuse in these rows (a class that the teacher has not, a conversation without an assistant, a text that is too
long) is met here, in the build's own words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from softlabels.builder.config import BuildConfig
from softlabels.core.progress import Reporter
from softlabels.corpora import Corpus
from softlabels.corpora.beginning import beginnings, share_taken
from softlabels.domains import DOMAINS
from softlabels.domains.maker import CorpusPass
from softlabels.errors import ConfigError, CorpusError
from softlabels.start.findings import Finding, fine, look, mend
from softlabels.teachers.unloaded import UnloadedTeacher

BYTES = 1_000_000
"""Of the corpus that is tokenised."""
FEW_CUT = 0.02
"""Share of documents that may be longer than a row before it is said."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What the beginning of a corpus came to."""

    rows: int
    tokens: int
    positions: int
    longest: int
    """Tokens of a document in one row."""
    of_documents: list[int]
    """Tokens of each document."""
    long: int
    """Documents that do not fit in a row and are cut into pieces."""
    share: float
    """Of the corpus, over which this was counted."""
    trouble: str = ""
    """What the build would stop at."""

    @property
    def all_tokens(self) -> int:
        """Of the whole corpus, estimated."""
        return round(self.tokens / self.share)

    @property
    def all_positions(self) -> int:
        """Of the whole corpus, estimated."""
        return round(self.positions / self.share)


def lengths_of(
    config: BuildConfig,
    corpora: Sequence[Corpus],
    teacher: UnloadedTeacher,
    report: Reporter,
    room: int = BYTES,
) -> Lengths:
    """Pack the beginning of a corpus as the build will.

    Args:
        room: bytes of content to take, about.
    """
    parts = beginnings(corpora, room)
    over = CorpusPass(
        config=replace(config, skip_empty=True),
        corpora=corpora if parts is None else parts,
        teacher=teacher,
    )
    report.stage("tokenise a beginning", None, "rows")
    rows = tokens = positions = longest = 0
    pieces: dict[int, list[int]] = {}
    trouble = ""
    try:
        packed = DOMAINS.load(config.domain).maker.rows(over)
        for _, row in islice(packed, config.limit_rows):
            rows, tokens, positions = rows + 1, tokens + row.size, positions + row.n
            segments = getattr(row, "segment_lengths", np.array([row.size]))
            longest = max(longest, int(segments.max()))
            numbers = getattr(row, "documents", np.array([rows]))
            for number, size in zip(numbers, segments, strict=True):
                pieces.setdefault(int(number), []).append(int(size))
            report.advance(1)
    except (CorpusError, ConfigError) as e:
        trouble = str(e)
    whole = parts is None or trouble or rows == config.limit_rows
    return Lengths(
        rows=rows,
        tokens=tokens,
        positions=positions,
        longest=longest,
        of_documents=[sum(sizes) for sizes in pieces.values()],
        long=sum(len(sizes) > 1 for sizes in pieces.values()),
        share=1.0 if whole or parts is None else max(share_taken(parts), 1e-9),
        trouble=trouble,
    )


def findings_of(
    lengths: Lengths, config: BuildConfig, teacher: UnloadedTeacher
) -> Iterator[Finding]:
    """Rows against the teacher's context, documents against rows."""
    if lengths.trouble:
        yield mend("lengths", lengths.trouble, "as it says")
        return
    if not lengths.rows:
        yield mend("lengths", "no row can be made of the corpus", "give it a text of two tokens")
        return
    about = "" if lengths.share == 1 else "about "
    yield fine(
        "lengths",
        f"{about}{lengths.all_tokens:,} tokens; rows of at most {config.seq_len:,}, the longest piece of a document "
        f"{lengths.longest:,}, the teacher's context {_context(teacher.context)}",
    )
    documents = len(lengths.of_documents)
    share = lengths.long / max(1, documents)
    one_row = DOMAINS.load(config.domain).chained
    if one_row and share > FEW_CUT and documents > 1:
        room = teacher.context or 4 * config.seq_len
        wider = min(room, 4 * config.seq_len)
        yield look(
            "lengths",
            f"{share:.0%} of the documents are longer than a row and are cut into pieces, which do not see each other",
            f"seq_len = {wider} keeps more of them whole"
            if wider > config.seq_len
            else "nothing: the teacher reads no more at a time",
        )


def _context(context: int | None) -> str:
    return "unlimited" if context is None else f"{context:,}"
