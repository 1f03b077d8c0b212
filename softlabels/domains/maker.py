"""How a build makes rows of documents: what a domain's `corpus.py` has as `MAKER`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from softlabels.core.rows import BEGINNING, Cursor, InputRow
from softlabels.corpora import Corpus, check_begin, named, open_corpora
from softlabels.corpora.packing import CorpusCounts
from softlabels.teachers import Teacher

if TYPE_CHECKING:
    from softlabels.builder.config import BuildConfig
    from softlabels.format.identity import Identity


@dataclass(frozen=True, kw_only=True)
class CorpusPass:
    """A pass over the corpora of a build."""

    config: BuildConfig
    corpora: Sequence[Corpus]
    """As `RowMaker.open` gave them."""
    teacher: Teacher
    """Whose tokenizer or classes rows are made with."""
    start: Cursor = BEGINNING
    """Yielded by an earlier pass; what comes before it is not tokenised, and not read if its location is known."""
    alive: Callable[[], None] = lambda: None
    """Called for each document that is read."""
    ahead: bool = False
    """Whether documents may be read and tokenised before their rows are asked for; for a pass that goes far."""
    counts: CorpusCounts = field(default_factory=CorpusCounts)
    """Filled in as rows are yielded."""


class RowMaker(ABC):
    """The builder's side of a domain."""

    settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of a build that belong to this domain, of those that not all domains have."""
    transformers_teacher: ClassVar[str | None] = None
    """`module:function` from a `teachers.hf_source.HFSource` to a teacher, which `hf:` calls; None: there is none."""

    @abstractmethod
    def rows(self, over: CorpusPass) -> Iterator[tuple[Cursor, InputRow]]:
        """Rows of the corpora, each with where it begins.

        Raises:
            ConfigError: one is longer than the teacher can read.
            CorpusError: what the corpus holds cannot be taught.
        """

    def check(self, config: BuildConfig) -> None:  # noqa: B027
        """Refuse settings of this domain that are none, or contradict each other.

        Raises:
            ConfigError: names the flag.
        """

    def spelled(self, specs: Sequence[str]) -> Sequence[str]:
        """Each corpus as `name:argument`.

        Raises:
            ConfigError: a path whose kind cannot be told.
        """
        return named(specs)

    def row_tokens(self, config: BuildConfig) -> int:
        """Tokens in a row, at most."""
        return config.seq_len

    def open(self, config: BuildConfig) -> Sequence[Corpus]:
        """What rows are made from.

        Raises:
            ConfigError: an unknown kind.
            CorpusError: nothing matches, or the first documents cannot be read.
        """
        corpora = open_corpora(config.corpus)
        check_begin(corpora, skip_empty=config.skip_empty)
        return corpora

    def known_rows(self, config: BuildConfig, corpora: Sequence[Corpus]) -> int | None:
        """Rows of the whole job, where they can be told before the corpus is read."""
        return None

    def record(
        self, config: BuildConfig, corpora: Sequence[Corpus], teacher: Teacher, *, rows: int
    ) -> dict[str, Any]:
        """The parts of a store's identity that are this domain's own, for so many rows."""
        return {}

    def asked(self, config: BuildConfig, teacher: Teacher, planned: Identity) -> dict[str, Any]:
        """The same parts, as far as they are the user's or the teacher's choice; the rest as planned."""
        return self.record(config, (), teacher, rows=planned.corpus.rows)
