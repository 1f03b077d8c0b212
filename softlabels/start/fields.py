"""Which fields of a corpus' records are read, and as what: from its first record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from softlabels.corpora import Corpus
from softlabels.corpora.files import JsonLines, json_object
from softlabels.corpora.parquet import ParquetFiles
from softlabels.corpora.records import KINDS, kind_of
from softlabels.errors import CorpusError
from softlabels.start.findings import Finding, fine, mend

TRIED = 50
"""Lines that are looked at for one that is a record."""


def fields_of(corpora: Sequence[Corpus]) -> Iterator[Finding]:
    """Of each corpus whose records have fields."""
    for corpus in corpora:
        try:
            if isinstance(corpus, ParquetFiles):
                yield fine("fields", f"{corpus.spec}: {corpus.mapping()}")
            elif isinstance(corpus, JsonLines) and (names := _names(corpus)):
                yield fine(
                    "fields", f"{corpus.spec}: {kind_of(names, KINDS, corpus.spec).mapping(names)}"
                )
        except CorpusError as e:
            yield mend("fields", str(e), "rename the fields, or name one column with #COLUMN")


def _names(corpus: JsonLines) -> list[str]:
    """Fields of its first line that is an object; none if there is no such line near its beginning."""
    with corpus.paths[0].open("rb") as f:
        for line in islice(f, TRIED):
            try:
                return list(json_object(line, str(corpus.paths[0])))
            except CorpusError:
                continue
    return []
