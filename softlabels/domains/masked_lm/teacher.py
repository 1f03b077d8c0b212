"""`hf:PATH` for masked LMs, which show what their last layer gave, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softlabels.domains.masked_lm import DOMAIN
from softlabels.errors import TeacherError
from softlabels.teachers.encoder_tokenizer import EncoderTokenizer
from softlabels.teachers.hf_head import HFHeadTeacher
from softlabels.teachers.hf_source import HFSource, context_of


class HFMaskedTeacher(HFHeadTeacher):
    """A masked LM of transformers.

    Raises:
        TeacherError: it cannot be loaded, its head is not in the folder, or it cannot hide anything.
    """

    def __init__(self, source: HFSource) -> None:
        model = source.placed(DOMAIN.transformers)
        tokenizer = EncoderTokenizer(source.tokenizer(), longest=context_of(model.config))
        if "mask" not in tokenizer.record.special_ids:
            raise TeacherError(
                f"{source.spec}: its tokenizer has no mask token, so nothing can be hidden"
            )
        self.hidden_size = int(model.config.hidden_size)
        self.last_layer = torch.empty(0, self.hidden_size)
        super().__init__(model, tokenizer, source)

    def _given(self, fed: dict[str, Tensor], flat: Tensor) -> Tensor:
        layers: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            layers.append(out[0])

        with self.model.base_model.register_forward_hook(keep):
            given = super()._given(fed, flat)
        self.last_layer = layers[-1].flatten(0, 1).index_select(0, flat).float()
        return given
