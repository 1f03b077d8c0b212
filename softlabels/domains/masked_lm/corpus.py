"""Documents to rows of a masked LM: a text is one row, or as many pieces as it takes, in each masked view.

No token is lost: a text that is longer than a row is cut into pieces, each with the tokenizer's own marks at its ends.
Views follow one another, each a pass over the whole corpus, so that views of one text are far apart. A text of which
nothing can be hidden is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from softlabels.codecs.hidden import HIDDEN_CODECS
from softlabels.core.rows import BEGINNING, Cursor, Location
from softlabels.corpora import Corpus, documents_of
from softlabels.domains.maker import CorpusPass, RowMaker
from softlabels.domains.masked_lm import DOMAIN, MaskedRow
from softlabels.domains.masked_lm.masking import MASKED, TARGETS, unmaskable
from softlabels.errors import ConfigError, CorpusError, TeacherError
from softlabels.format.identity import HiddenRecord, MaskingRecord
from softlabels.teachers import Teacher

if TYPE_CHECKING:
    from softlabels.builder.config import BuildConfig


class MaskedTexts(RowMaker):
    """Views of texts, and perhaps the teacher's last layer."""

    transformers_teacher = "softlabels.domains.masked_lm.teacher:HFMaskedTeacher"

    settings = frozenset({"mask_share", "mask_targets", "hidden", "views"})

    def check(self, config: BuildConfig) -> None:
        """A share, and words that are known."""
        for flag, value, known in (
            ("hidden", config.hidden, tuple(HIDDEN_CODECS)),
            ("mask-targets", config.mask_targets, TARGETS),
        ):
            if value is not None and value not in known:
                raise ConfigError(f"--{flag} {value!r}: expected one of {', '.join(known)}")
        if config.mask_share is not None and not 0 < config.mask_share <= 1:
            raise ConfigError(
                f"--mask-share {config.mask_share}: expected a share above 0 and at most 1"
            )

    def rows(self, over: CorpusPass) -> Iterator[tuple[Cursor, MaskedRow]]:
        """A cursor's document counts those of earlier views, too, its offset is the piece."""
        config, counts, tokenizer = over.config, over.counts, over.teacher.tokenizer
        masking, ordinal = _masking(config), -1
        first, start = 0, BEGINNING
        if (location := over.start.location) is not None:
            number = over.start.document if location.document is None else location.document
            first, start = location.view, Cursor(number, 0, location)
            ordinal = over.start.document - 1
        for view in range(first, masking.views):
            documents = documents_of(
                over.corpora, skip_empty=config.skip_empty, start=start, alive=over.alive
            )
            start = BEGINNING
            for number, document in documents:
                ordinal += 1
                if ordinal < over.start.document:
                    continue
                if document is None:
                    counts.skipped_empty += view == 0
                    continue
                if document.text is None:
                    raise CorpusError(
                        f'{document.where}: expected a "text"; conversations and word lists are of other domains'
                    )
                pieces = tokenizer.encode_pieces(document.text, most=config.seq_len)
                if all(unmaskable(ids, tokenizer.record).all() for ids in pieces):
                    counts.skipped_short += view == 0
                    continue
                counts.documents += view == 0
                for piece, ids in enumerate(pieces):
                    if (ordinal, piece) < over.start[:2]:
                        continue
                    row = DOMAIN.row(
                        ids, masking, tokenizer.record, document=number, piece=piece, view=view
                    )
                    yield Cursor(ordinal, piece, _in_view(document.location, view, number)), row

    def record(
        self, config: BuildConfig, corpora: Sequence[Corpus], teacher: Teacher, *, rows: int
    ) -> dict[str, Any]:
        """How tokens are hidden, and what is kept of the last layer."""
        return {"masking": _masking(config), "hidden": _hidden(config, teacher)}


def _in_view(location: Location | None, view: int, number: int) -> Location | None:
    """A document's location in a view: in the first its number is the cursor's own."""
    if location is None or view == 0:
        return location
    return msgspec.structs.replace(location, view=view, document=number)


def _masking(config: BuildConfig) -> MaskingRecord:
    return MaskingRecord(
        share=0.15 if config.mask_share is None else config.mask_share,
        targets=config.mask_targets or MASKED,
        views=config.views,
        seed=config.seed,
    )


def _hidden(config: BuildConfig, teacher: Teacher) -> HiddenRecord | None:
    if config.hidden is None:
        return None
    if teacher.hidden_size is None:
        raise TeacherError(
            f"{teacher.record.spec}: gives no hidden states; leave --hidden out, or use hf:PATH"
        )
    codec = HIDDEN_CODECS[config.hidden]
    return HiddenRecord(values=config.hidden, width=teacher.hidden_size, error=codec.error)


MAKER = MaskedTexts()
