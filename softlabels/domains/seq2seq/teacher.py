"""`hf:PATH` for models with an encoder and a decoder: T5, BART and the like.

Both run once for a batch of pairs; the head is applied to chunks of the decoder's places (`teachers/hf_head.py`).
"""

from __future__ import annotations

from msgspec.structs import replace

from softlabels.domains.seq2seq import DOMAIN, START
from softlabels.errors import TeacherError
from softlabels.teachers.encoder_tokenizer import EncoderTokenizer
from softlabels.teachers.hf_head import HFHeadTeacher
from softlabels.teachers.hf_source import HFSource, context_of

FED = ("input_ids", "attention_mask", "decoder_input_ids")


def from_transformers(source: HFSource) -> HFHeadTeacher:
    """Load model and tokenizer.

    Raises:
        TeacherError: it cannot be loaded, its weights are not all in the folder, or it does not say what its decoder is
            fed first.
    """
    model = source.placed(DOMAIN.transformers)
    start = model.config.decoder_start_token_id
    if start is None:
        raise TeacherError(
            f"{source.where}: its config.json names no decoder_start_token_id, so nobody knows what its decoder is fed "
            "first; add the one that it was trained with"
        )
    tokenizer = EncoderTokenizer(source.tokenizer(), longest=context_of(model.config))
    special = {**tokenizer.record.special_ids, START: int(start)}
    tokenizer.record = replace(tokenizer.record, special_ids=special)
    return HFHeadTeacher(model, tokenizer, source, fed=FED)
