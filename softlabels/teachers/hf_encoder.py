"""`hf:PATH` for texts as a whole: an encoder with a head over classes or tokens, as transformers loads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from softlabels.core.devices import choose
from softlabels.core.local_model import LocalModel, loading
from softlabels.core.registry import without_folder
from softlabels.domains.text import TextRow
from softlabels.errors import TeacherError
from softlabels.teachers import MIB, Teacher, TeacherOptions
from softlabels.teachers.encoder_tokenizer import EncoderTokenizer
from softlabels.teachers.hf_masked import HFMaskedTeacher
from softlabels.teachers.hf_source import HFSource, load_whole, pad_texts

__all__ = ["HFEncoderTeacher", "load_hf_encoder"]

HEADS = {
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
"""Domain and the class of transformers that loads its models."""


def load_hf_encoder(
    path: str, found: LocalModel, options: TeacherOptions, transformers: Any, weights_sha256: str
) -> Teacher:
    """Load model and tokenizer of a folder.

    Args:
        path: as the user named it.
        found: where it is.
        options: how to run it; its domain is a key of `HEADS`.
        transformers: the module.
        weights_sha256: of the folder's weights.

    Raises:
        TeacherError: it cannot be loaded, its head is not in the folder, or it is not a classifier where one is asked
            for.
    """
    choice = choose(options.device, options.dtype)
    options.notice(f"teacher: {choice.reason}")
    loader = getattr(transformers, HEADS[options.domain])
    with loading(f"hf:{path}", TeacherError):
        tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder)
    model = load_whole(loader, found, f"hf:{path}", dtype=choice.dtype).to(choice.device).eval()
    longest = getattr(model.config, "max_position_embeddings", None)
    source = HFSource(
        spec=without_folder(f"hf:{path}"),
        name=found.name,
        weights_sha256=weights_sha256,
        engine=f"transformers {transformers.__version__}, torch {torch.__version__}",
    )
    if options.domain == "masked-lm":
        budget = options.head_bytes or (256 if choice.device.type == "cuda" else 16) * MIB
        return HFMaskedTeacher(
            model, EncoderTokenizer(tokenizer, longest=longest), source, head_bytes=budget
        )
    _check_classifier(model, path)
    return HFEncoderTeacher(model, EncoderTokenizer(tokenizer, longest=longest), source)


def _check_classifier(model: Any, path: str) -> None:
    if getattr(model.config, "problem_type", None) in ("regression", "multi_label_classification"):
        raise TeacherError(
            f"hf:{path}: its head is one of {model.config.problem_type}, which gives no distribution over classes; "
            "soft targets are for classifiers of one class among several"
        )
    if model.config.num_labels < 2:
        raise TeacherError(
            f"hf:{path}: its head has one output: a regression, which gives no distribution over classes; soft targets "
            "are for classifiers"
        )


class HFEncoderTeacher(Teacher):
    """An encoder of transformers with a head over classes."""

    def __init__(
        self,
        model: Any,
        tokenizer: EncoderTokenizer,
        source: HFSource,
    ) -> None:
        self._model, self.tokenizer = model, tokenizer
        self.device = next(model.parameters()).device
        config = model.config
        self.classes = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        self.record = source.record(model, vocab_size=config.num_labels)
        if tokenizer.vocab_size > config.vocab_size:
            raise TeacherError(
                f"{source.spec}: the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}; "
                "they do not belong together"
            )

    @torch.no_grad()
    def logits(self, rows: Sequence[TextRow]) -> Iterator[Tensor]:
        """One chunk `[N, C] float32`: of the texts, or of the words in them."""
        padded, ids, mask = pad_texts(rows, self.device)
        logits = self._model(input_ids=ids, attention_mask=mask).logits
        if logits.dim() == 3:
            flat = torch.from_numpy(padded.flat_positions).to(self.device)
            logits = logits.flatten(0, 1).index_select(0, flat)
        yield logits.float()
