"""Who teaches: anything that turns rows into logits, a chunk at a time.

To add a back-end: one file here, one line in `TEACHERS`, one file in tests/teachers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softlabels.core.registry import Registry, split_spec
from softlabels.errors import ConfigError, TeacherError
from softlabels.format.identity import TeacherRecord, TokenizerRecord

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from softlabels.capture import Job, Kept
    from softlabels.core.linear_head import LinearHead
    from softlabels.corpora import Message, Tool
    from softlabels.corpora.packing import Tokenized
    from softlabels.teachers.listing import ListingTeacher

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How to run a teacher."""

    domain: str = "causal-lm"
    """What it is asked for; a back-end refuses a domain that it does not serve."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    dtype: str = "auto"
    """`auto`, `float32`, `bfloat16`, `float16`: of the body; the head always computes in float32."""
    head_bytes: int | None = None
    """Byte budget of a chunk of logits `[n, V] float32`; None: as `chunk_bytes` says."""
    notice: Callable[[str], None] = lambda _: None
    """Told what was chosen, and why."""

    def chunk_bytes(self, device: str) -> int:
        """`head_bytes` on a kind of device, such as `cuda`."""
        return self.head_bytes or (256 if device == "cuda" else 64) * MIB


class TeacherTokenizer:
    """What gives the ids of a teacher's rows their meaning; derive from it, and define what your domain calls.

    `encode`, `encode_completion` and `encode_chat` make documents of a causal LM; `encode_text`, `encode_pieces` and
    `encode_words` texts that are rows of their own, with the marks at their ends.
    """

    vocab_size: int
    record: TokenizerRecord

    def files(self) -> Mapping[str, bytes]:
        """Its serialised form, by file name: what a store keeps under `tokenizer/`."""
        return {}

    def encode(self, text: str) -> Tokenized:
        """Tokenise a whole document, with whatever marks its begin and end."""
        raise self._missing("documents")

    def encode_completion(self, prompt: str, completion: str) -> Tokenized:
        """Tokenise both as one document, of which the completion and the end are to be learnt."""
        raise self._missing("completions")

    def encode_chat(
        self, messages: Sequence[Message], *, where: str, tools: Sequence[Tool] = ()
    ) -> Tokenized:
        """Render a conversation, and the tools that the assistant has, with the chat template and tokenise it."""
        raise self._missing("conversations")

    def encode_text(self, text: str, *, most: int) -> tuple[npt.NDArray[np.int32], int]:
        """At most so many tokens `[S] int32` with the marks at their ends, and how many the whole text has."""
        raise self._missing("texts that are rows of their own")

    def encode_pieces(self, text: str, *, most: int) -> list[npt.NDArray[np.int32]]:
        """The whole text in pieces of at most so many tokens `[S] int32`, each with the marks at its ends."""
        raise self._missing("texts that are rows of their own")

    def encode_words(
        self, words: Sequence[str], *, most: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
        """At most so many tokens `[S] int32`, the word of each `[S] int32` (-1: a mark), and how many there are."""
        raise self._missing("lists of words")

    def _missing(self, what: str) -> TeacherError:
        return TeacherError(
            f"the teacher's tokenizer ({type(self).__name__}) does not take {what}; use a teacher of this --domain"
        )


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How images are made for a teacher."""

    size: int
    """S: pixels of a side that it is made for."""
    mean: Sequence[float]
    std: Sequence[float]
    """Of each channel, on the scale of 0 to 255: it is fed `(x - mean) / std`."""


@dataclass(frozen=True, kw_only=True)
class SecondPath:
    """The same weights, run by transformers."""

    load: Callable[[], Teacher]
    weights_bytes: int
    """Of the memory that it takes."""


class Teacher(ABC):
    """A model that gives logits for rows: what every back-end derives from.

    It sets `record` and `tokenizer` and defines `logits`. What else it is able to do it declares by setting the other
    attributes, whose defaults say that it is not.
    """

    record: TeacherRecord
    tokenizer: TeacherTokenizer
    classes: Sequence[str] | None = None
    """What each class is called, in order of its number; None: its ids are tokens."""
    context: int | None = None
    """How many tokens of a document it reads at a time; None: no row is too long for it."""
    images: ImageInput | None = None
    """How images are made for it; None: it does not look at images."""
    hidden_size: int | None = None
    """D, if it shows its last layer, too; None: it does not."""
    last_layer: Tensor
    """`[N, D] float32`, with `hidden_size`: what it gave at the positions of the rows that `logits` was asked for."""
    head: LinearHead | None = None
    """Its head, if its logits are a linear map of states that it shows (`states`); None: not so."""
    listing: ListingTeacher | None = None
    """Itself, if it lists the most probable ids and has no logits to give (`teachers/listing.py`)."""
    selects: bool = False
    """Whether it selects beside its model, and has no logits to give (`teachers/local_engine.py`)."""
    batches: bool = False
    """Whether it makes its own batches: it is then given all rows of a shard at once."""

    second_path: SecondPath | None = None
    """Another way to the same distributions, with which an engine is compared before its first shard; None: there is
    none."""

    @abstractmethod
    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` on the teacher's device: the positions of all rows (of its domain), in order.

        Each chunk is at most the byte budget, and the caller may overwrite it.
        """

    def states(self, rows: Sequence[Any]) -> Tensor:
        """`[N, D]`, with `head`: what its head is given at the positions of all rows, in the dtype of its body."""
        raise TeacherError(
            f"{self.record.spec}: does not show what its head is given; use hf:PATH, a model with a linear head"
        )

    def selected(self, rows: Sequence[Any], job: Job, uniforms: Tensor | None) -> Iterator[Kept]:
        """What is kept of the positions of all rows, in order, some at a time: by default of `logits`.

        Args:
            rows: of its domain.
            job: what is wanted.
            uniforms: `[N, U] float64` in [0, 1), or None if the estimator takes none.

        Raises:
            BadLogitError: with the index of the position among those of the rows.
        """
        from softlabels.capture import keep_chunks, labels_of

        return keep_chunks(self.logits(rows), labels_of(rows), uniforms, job)

    def remarks(self) -> list[str]:
        """Lines for people, about what this builder taught."""
        return []

    def need_classes(self) -> Sequence[str]:
        """Its classes; `TeacherError` if it has none."""
        if self.classes is None:
            raise TeacherError(f"{self.record.spec}: is no classifier, which this --domain needs")
        return self.classes

    def need_images(self) -> ImageInput:
        """How images are made for it; `TeacherError` if it does not look at images."""
        if self.images is None:
            raise TeacherError(
                f"{self.record.spec}: does not look at images; for --domain image-classification use hf:PATH, "
                "timm:NAME?weights=FILE or torchvision:NAME?weights=FILE"
            )
        return self.images


TEACHERS: Registry[Callable[[str, TeacherOptions], Teacher]] = Registry(
    "softlabels.teachers",
    {
        "hf": "softlabels.teachers.hf:load_hf",
        "hidden": "softlabels.teachers.hidden:HiddenTeacher",
        "onnx": "softlabels.teachers.onnx:OnnxTeacher",
        "openai": "softlabels.teachers.openai:OpenAITeacher",
        "pooling": "softlabels.teachers.pooling:PoolingTeacher",
        "py": "softlabels.teachers.py:CallableTeacher",
        "sglang": "softlabels.teachers.sglang:load_sglang",
        "timm": "softlabels.teachers.vision:load_timm",
        "torchvision": "softlabels.teachers.vision:load_torchvision",
        "vllm": "softlabels.teachers.vllm:load_vllm",
    },
)


def causal_only(options: TeacherOptions, spec: str) -> None:
    """Refuse another domain than causal language models with a `ConfigError`."""
    if options.domain != "causal-lm":
        raise ConfigError(f"--domain {options.domain}: {spec} serves causal-lm only; use hf:PATH")


def open_teacher(spec: str, options: TeacherOptions) -> Teacher:
    """Load `name:argument`.

    Raises:
        ConfigError: an unknown back-end.
        TeacherError: it cannot be loaded, or is not understood.
    """
    name, argument = split_spec(spec, flag="--teacher")
    teacher = TEACHERS.load(name)(argument, options)
    if not isinstance(teacher, Teacher):
        raise ConfigError(
            f"--teacher {spec}: its back-end gave a {type(teacher).__name__}, which is no softlabels.teachers.Teacher; "
            "derive its class from that"
        )
    return teacher
