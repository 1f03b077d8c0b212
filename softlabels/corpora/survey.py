"""How far a pass over the corpora is: rows of `--limit-rows` or of images, else bytes of the files that were read."""

from __future__ import annotations

from collections.abc import Sequence

from softlabels.core.progress import Reporter
from softlabels.corpora import BytesRead, Corpus
from softlabels.corpora.packing import CorpusCounts


class SurveyProgress:
    """Reports each row of a pass, with rows, documents and tokens so far.

    Args:
        report: receives it.
        corpora: those that say how much of their files was read have a `BytesRead` as `read`.
        counts: of the pass, filled in by whoever makes the rows.
        rows: the most rows there can be, if that is known.
        passes: times that the corpora are read.
    """

    def __init__(
        self,
        report: Reporter,
        corpora: Sequence[object],
        counts: CorpusCounts,
        *,
        rows: int | None,
        passes: int,
    ) -> None:
        self._report, self._counts = report, counts
        self._rows = self._tokens = 0
        read = [c.read if isinstance(c, Corpus) else None for c in corpora]
        self._read: list[BytesRead] = [r for r in read if r is not None]
        self._in_bytes = rows is None and len(self._read) == len(read)
        self._reported = sum(r.done for r in self._read)
        if self._in_bytes:
            report.stage("tokenise", passes * sum(r.total for r in self._read), "bytes")
        else:
            report.stage("tokenise", rows, "rows")

    def row(self, tokens: int) -> None:
        """A row of so many tokens was made."""
        self._rows += 1
        self._tokens += tokens
        self._report.advance(self._new_bytes() if self._in_bytes else 1, self._note())

    def end(self) -> None:
        """The pass is over, and the last document left behind."""
        if self._in_bytes:
            self._report.advance(self._new_bytes(), self._note())

    def _new_bytes(self) -> int:
        done = sum(r.done for r in self._read)
        new, self._reported = done - self._reported, done
        return new

    def _note(self) -> str:
        documents = self._counts.documents
        said = f"{documents:,} document{'s'[: documents != 1]}, {self._tokens:,} tokens"
        return f"{self._rows:,} rows, {said}" if self._in_bytes else said
