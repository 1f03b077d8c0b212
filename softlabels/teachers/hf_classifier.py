"""`hf:PATH` for texts and words with classes: an encoder with a head over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from softlabels.domains import DOMAINS
from softlabels.domains.text import TextRow
from softlabels.errors import TeacherError
from softlabels.teachers import Teacher
from softlabels.teachers.encoder_tokenizer import EncoderTokenizer
from softlabels.teachers.hf_source import HFSource, context_of, padded_on


class HFClassifierTeacher(Teacher):
    """An encoder of transformers with a head over classes.

    Raises:
        TeacherError: it cannot be loaded, its head is not in the folder, or it is no classifier.
    """

    def __init__(self, source: HFSource) -> None:
        self._model = model = source.placed(str(DOMAINS.load(source.options.domain).transformers))
        config = model.config
        kind = getattr(config, "problem_type", None)
        if kind in ("regression", "multi_label_classification"):
            raise TeacherError(
                f"{source.where}: its head is one of {kind}, which gives no distribution over classes; soft targets "
                "are for classifiers of one class among several"
            )
        if config.num_labels < 2:
            raise TeacherError(
                f"{source.where}: its head has one output: a regression, which gives no distribution over classes; "
                "soft targets are for classifiers"
            )
        self.tokenizer = EncoderTokenizer(source.tokenizer(), longest=context_of(config))
        self.classes = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        self.record = source.record(model, vocab_size=config.num_labels)
        if self.tokenizer.vocab_size > config.vocab_size:
            raise TeacherError(
                f"{source.spec}: the tokenizer has {self.tokenizer.vocab_size} ids, the model only "
                f"{config.vocab_size}; they do not belong together"
            )

    @torch.no_grad()
    def logits(self, rows: Sequence[TextRow]) -> Iterator[Tensor]:
        """One chunk `[N, C] float32`: of the texts, or of the words in them."""
        fed, flat = padded_on(TextRow.pad(rows), self._model.device)
        logits = self._model(**fed).logits
        if logits.dim() == 3:
            logits = logits.flatten(0, 1).index_select(0, flat)
        yield logits.float()
