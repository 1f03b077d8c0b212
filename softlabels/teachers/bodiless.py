"""Causal LMs whose body runs elsewhere: last hidden states come from a file, an engine or a server.

The model is loaded without its layers: embeddings, final norm and head, in the memory that these take. It runs its own
forward, in which the states that are given take the place of the body's; so whatever the model does between body and
logits (a scale, a bias, a cap) is done by its own code, and the head is checked as that of `hf:` is.

States are those after the final norm, or before it (`norm=yes`), which is then applied here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softlabels.core.local_model import find_model, load_weights, offline_transformers
from softlabels.core.rows import Row
from softlabels.domains.causal_lm import DOMAIN
from softlabels.domains.causal_lm.final_norm import through_norm
from softlabels.domains.causal_lm.teacher import HFTeacher
from softlabels.errors import TeacherError
from softlabels.teachers import TeacherOptions
from softlabels.teachers.hf import second_path
from softlabels.teachers.hf_source import HFSource

NORM = {"yes": True, "no": False}
"""Whether the final norm is still to be applied, as specs say it."""


class BodilessTeacher(HFTeacher):
    """A model of which the head alone runs here: a back-end defines `given`, and names itself in `record`.

    Args:
        path: folder of the model.
        options: device of the head, and dtype of the states.
        norm: whether states are those before the final norm.

    Raises:
        TeacherError: the folder holds no such model, or no final norm is found where one is wanted.
    """

    def __init__(self, path: str, options: TeacherOptions, *, norm: bool = False) -> None:
        found = find_model(path, where=f"hf:{path}", error=TeacherError)
        if found.gguf is not None:
            raise TeacherError(
                f"hf:{path}: of a GGUF file the head cannot be loaded alone; give the folder of the model"
            )
        self._now: Tensor | None = None
        transformers = offline_transformers("the teacher's head")
        super().__init__(
            HFSource(argument=path, found=found, options=options, transformers=transformers)
        )
        body = self.model.base_model
        self._norm: nn.Module | None = None
        if norm:
            probe = torch.ones((1, 2), dtype=torch.int64, device=self.device)
            with torch.no_grad():
                self._norm = through_norm(body, {"input_ids": probe}, use_cache=False).norm
            if self._norm is None:
                raise TeacherError(
                    f"hf:{path}: {type(body).__name__} has no norm after its last layer; leave out norm=yes"
                )
        body.register_forward_hook(self._put)
        self.second_path = second_path(found, self.record.dtype)

    @staticmethod
    def load(source: HFSource) -> Any:
        """The model without its layers."""
        config = source.transformers.AutoConfig.from_pretrained(source.found.folder)
        text = config.get_text_config()
        text.num_hidden_layers = 0
        if getattr(text, "layer_types", None):
            text.layer_types = []
        logging = source.transformers.utils.logging
        said = logging.get_verbosity()
        logging.set_verbosity_error()  # of weights that have no place in it: those of the layers
        try:
            return load_weights(
                getattr(source.transformers, DOMAIN.transformers),
                source.found,
                dtype=source.choice.dtype,
                config=config,
            )
        finally:
            logging.set_verbosity(said)

    @abstractmethod
    def given(self, rows: Sequence[Row]) -> Iterator[Tensor]:
        """`[n, D]`: the body's last states at the positions of all rows, in order, some at a time."""

    @torch.no_grad()
    def states(self, rows: Sequence[Any]) -> Tensor:
        """`[N, D]`: what the head is given at the positions of all rows, in order."""
        parts = [self._between(part) for part in self.given(rows)]
        return (
            torch.cat(parts)
            if parts
            else self._linear.weight.new_empty(0, self._linear.weight.shape[1])
        )

    @torch.no_grad()
    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` of the positions of all rows, in order."""
        for part in self.given(rows):
            for chunk in torch.split(part, self._chunk):
                yield self.to_logits(self._between(chunk))

    def _between(self, given: Tensor) -> Tensor:
        """What the head is given where the body gives `given [n, D]`: positions as sequences of one token."""
        n, width = len(given), self._linear.weight.shape[1]
        if given.dim() != 2 or given.shape[1] != width:
            raise TeacherError(
                f"{self.record.spec}: states of shape {list(given.shape)}, expected width {width}, that of the head"
            )
        if not n:
            return given.to(self.device, self.model.dtype)
        states = given.to(self.device, self.model.dtype)
        self._now = (states if self._norm is None else self._norm(states))[:, None]
        try:
            ids = torch.zeros((n, 1), dtype=torch.int64, device=self.device)
            return self._given({"input_ids": ids}, torch.arange(n, device=self.device))
        finally:
            self._now = None

    def _put(self, _: nn.Module, args: Any, out: Any) -> Any:
        """Let the states that were given be the body's."""
        if self._now is not None:
            out.last_hidden_state = self._now
        return out
