"""Students: made from a configuration, from a teacher's layers, or loaded.

    new:SIZE                   from scratch, made to fit the store, see `made.py`
    hf-config:FILE             from scratch, weights drawn from the run's seed
    layers-of:PATH?keep=0,2,4  some layers of a model, with its embeddings, final norm and head
    hf:PATH                    a student saved earlier, or any model that is here (`softlabels/core/local_model.py`)
    hf:PATH?fake-quant=int4-g64    the same, learning on a grid of few bits, see `fake_quant.py`
    hf:PATH?lora=r:16          an adapter beside it, see `adapters.py`
    cnn:, timm:, torchvision:  of images, see `images.py`

A store's domain decides what kind of model that is: a causal LM, or an encoder with a head over the store's classes
(`encoders.py`). An encoder that comes without a head gets one drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from softlabels.core.head_input import head_input
from softlabels.core.linear_head import Cap, bias_of
from softlabels.core.registry import Registry, split_spec
from softlabels.errors import ConfigError, PairingError
from softlabels.store.reader import Store
from trainers.data.batch import Batch
from trainers.data.tasks import CAUSAL, Task
from trainers.loss.head import Head
from trainers.students.documents import keeps_documents_apart, laid_out
from trainers.students.fake_quant import rounded_state, seen_weight
from trainers.students.model_head import head_width
from trainers.students.own_logits import check_own_logits, measured_cap
from trainers.students.router import router_loss

if TYPE_CHECKING:
    from trainers.students.adapters import Adapter


class MakeStudent(Protocol):
    """What an entry of `STUDENTS` is."""

    def __call__(self, argument: str, *, seed: int, task: Task) -> Student:
        """Make the student for a task; random weights are a function of `seed`."""


STUDENTS: Registry[MakeStudent] = Registry(
    "trainers.students",
    {
        "new": "trainers.students.made:from_size",
        "hf-config": "trainers.students.hf:from_config",
        "layers-of": "trainers.students.layers_of:from_layers",
        "hf": "trainers.students.hf:from_folder",
        "cnn": "trainers.students.images:from_cnn",
        "timm": "trainers.students.images:from_timm",
        "torchvision": "trainers.students.images:from_torchvision",
    },
)


def make_student(spec: str, *, seed: int, task: Task = CAUSAL) -> Student:
    """Make or load `name:argument`, for a task.

    Raises:
        ConfigError: unknown kind, no such file, layers that are not there.
        PairingError: its logits would be others than its model's.
    """
    name, argument = split_spec(spec, flag="--student")
    student = STUDENTS.load(name)(argument, seed=seed, task=task)
    check_own_logits(student, where=f"--student {spec}")
    return student


class Student(nn.Module):
    """A causal LM whose forward goes as far as its head, which is worked through in chunks."""

    fed: ClassVar[tuple[str, ...]] = ("input_ids",)
    """What its model is fed to see what it does with its head's output; nothing, if that is logits."""

    def __init__(self, model: Any, *, source: Path | None = None) -> None:
        super().__init__()
        self.model = model
        self.source = source
        """Folder, or GGUF file, that its weights came from; None if they were drawn."""
        self._cap: Cap | None = None  # not measured yet
        self._router: Tensor | None = None
        self.head_dtype: torch.dtype | None = None
        """In what the head's products run; None: as its weight is."""
        self.adapter: Adapter | None = None
        """Where only an adapter beside the model's own weights learns, and is saved."""

    @property
    def vocab_size(self) -> int:
        """V: the width of the head."""
        return head_width(self.model.get_output_embeddings())

    @property
    def parameter_count(self) -> int:
        """Parameters, tied ones once; two of 4 bits lie in one byte."""
        return sum(p.numel() * (2 if _is_packed(p) else 1) for p in self.parameters())

    @property
    def trained_count(self) -> int:
        """Of the parameters, those that learn."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def hidden(self, batch: Batch) -> Tensor:
        """What the head is given: `[B, S, D]`, or `[N, D]` of the positions, if the batch is fed in another layout."""
        laid = laid_out(self.model, batch)
        hidden, out = head_input(self.head_layer(), lambda: self.forward_model(laid))
        self._router = router_loss(self.model.config, out)
        return hidden if laid is batch else laid.at_positions(hidden)

    def forward_model(self, batch: Batch) -> Any:
        """Run the whole model."""
        return self.model(**batch.inputs, use_cache=False)

    def routed(self) -> Tensor | None:
        """The routers' loss of the last forward, once; None: it has none (`router.py`)."""
        found, self._router = self._router, None
        return found

    @property
    def keeps_documents_apart(self) -> bool | None:
        """Whether position ids alone keep documents apart that share a row of a causal LM's store; None: not tried.

        If not, `hidden` feeds it each as a sequence of its own. A student with a `hidden` of its own, or whose weights
        are not there yet, is not tried.
        """
        if type(self).hidden is not Student.hidden or self.model.device.type == "meta":
            return None
        return keeps_documents_apart(self.model)

    def hidden_and_layer(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """`hidden`, and `[N, D]` of the last layer at the positions, where the student can show it."""
        return self.hidden(batch), None

    def layers(self) -> list[nn.Module]:
        """The repeated layers: the longest list of modules."""
        lists = [list(m) for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=len, default=[])

    def head_layer(self) -> Any:
        """The linear layer that is the head."""
        return self.model.get_output_embeddings()

    def head(self) -> Head:
        """The head as it is now."""
        layer = self.head_layer()
        if self._cap is None:
            self._cap = measured_cap(self)
        return Head(
            weight=seen_weight(layer),
            bias=bias_of(self.model, layer),
            softcap=self._cap.softcap,
            scale=self._cap.scale,
            compute_dtype=self.head_dtype,
        )

    def freeze(self, parts: Collection[str]) -> None:
        """Have `head` or `embeddings` not learn.

        Raises:
            ConfigError: there are no such embeddings, or they are the head, and only one of the two is named.
        """
        table = getattr(self.model, "get_input_embeddings", lambda: None)()
        own = {"head": self.head_layer().weight, "embeddings": getattr(table, "weight", None)}
        for part in parts:
            weight = own[part]
            if weight is None:
                raise ConfigError(f"--freeze {part}: the student has no embeddings of ids")
            if own["head"] is own["embeddings"] and len(set(parts)) == 1:
                raise ConfigError(
                    f"--freeze {part}: the student's head is tied to its embeddings; give --freeze head --freeze "
                    "embeddings, or neither"
                )
            weight.requires_grad_(False)
            bias = getattr(self.head_layer(), "bias", None)
            if part == "head" and bias is not None:
                bias.requires_grad_(False)

    def saved_state(self, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What is saved: the present state, or other `weights` by the model's own names, as it is computed with."""
        state = dict(self.model.state_dict()) if weights is None else weights
        return (
            rounded_state(self.model, state) if self.adapter is None else self.adapter.state(state)
        )

    def learnt(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: parameters and buffers, or those of the adapter."""
        if self.adapter is not None:
            return {n: p for n, p in self.named_parameters() if p.requires_grad}
        return dict(self.named_parameters()) | dict(self.named_buffers())

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write `config.json` and `model.safetensors`, or an adapter; `from_pretrained` reads them.

        Args:
            folder: where to.
            weights: by the model's own names, where they are not the student's present ones.
        """
        state = self.saved_state(weights)
        if self.adapter is not None:
            self.adapter.save(folder, state)
        else:
            self.model.save_pretrained(folder, state_dict=state)


def _is_packed(parameter: Tensor) -> bool:
    return getattr(parameter, "quant_state", None) is not None and parameter.dtype == torch.uint8


def check_vocab(student: Student, store: Store, *, where: str) -> None:
    """Refuse a student whose head is not the store's vocabulary, or its view's.

    Raises:
        PairingError: the widths differ.
    """
    v, mine = store.vocab_size, student.vocab_size
    if mine != v and store.identity.classes is not None:
        raise PairingError(
            f"{where}: the student has {mine} classes, the store {v}; use a student of these"
        )
    if mine != v:
        whose = "the store's" if store.view is None else f"that of --vocab {store.view.spec}"
        trim = f", or read the store with --vocab trim:{mine}" if mine < v else ""
        raise PairingError(
            f"{where}: the student's vocabulary has {mine} ids, {whose} {v}; set vocab_size to {v} "
            f"in the student's config, or take --student new:SIZE, which has it{trim}"
        )


def load_student(folder: Path, task: Task = CAUSAL) -> Student:
    """A student that a run saved."""
    return make_student(f"hf:{folder}", seed=0, task=task)
