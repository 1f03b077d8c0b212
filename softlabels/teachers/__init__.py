"""Who teaches: anything that turns rows into logits, a chunk at a time.

To add a back-end: one file here, one line in `TEACHERS`, one file in tests/teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from softlabels.core.registry import Registry, split_spec
from softlabels.corpora.packing import Tokenizer
from softlabels.errors import ConfigError
from softlabels.format.identity import TeacherRecord, TokenizerRecord

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

__all__ = [
    "TEACHERS",
    "ImageTeacher",
    "LayerTeacher",
    "Remarking",
    "Teacher",
    "TeacherOptions",
    "TeacherTokenizer",
    "TextTeacher",
    "TextTokenizer",
    "causal_only",
    "open_teacher",
]

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
    """Byte budget of a chunk of logits `[n, V] float32`; None: 16 MiB on a CPU, 256 MiB on a GPU."""
    notice: Callable[[str], None] = lambda _: None
    """Told what was chosen, and why."""


class TeacherTokenizer(Tokenizer, Protocol):
    """A teacher's tokenizer can describe and save itself, too."""

    record: TokenizerRecord

    def files(self) -> Mapping[str, bytes]:
        """Its serialised form, by file name: what a store keeps under `tokenizer/`."""


class Teacher(Protocol):
    """A model that gives logits for rows.

    One that reads a limited number of tokens at a time says so as `context`; without the attribute, or with None, no
    row is too long for it.
    """

    record: TeacherRecord
    tokenizer: TeacherTokenizer

    def logits(self, rows: Sequence[Any]) -> Iterator[Tensor]:
        """Chunks `[n, V] float32` on the teacher's device: the positions of all rows (of its domain), in order.

        Each chunk is at most the byte budget, and the caller may overwrite it.
        """


class TextTokenizer(Protocol):
    """A tokenizer of texts that are rows of their own."""

    vocab_size: int
    record: TokenizerRecord

    def files(self) -> Mapping[str, bytes]:
        """Its serialised form, by file name."""

    def encode_text(self, text: str, *, most: int) -> tuple[npt.NDArray[np.int32], int]:
        """At most so many tokens `[S] int32` with the marks at their ends, and how many the whole text has."""

    def encode_pieces(self, text: str, *, most: int) -> list[npt.NDArray[np.int32]]:
        """The whole text in pieces of at most so many tokens `[S] int32`, each with the marks at its ends."""

    def encode_words(
        self, words: Sequence[str], *, most: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]:
        """At most so many tokens `[S] int32`, the word of each `[S] int32` (-1: a mark), and how many there are."""


class TextTeacher(Protocol):
    """A teacher of texts as a whole."""

    tokenizer: TextTokenizer
    classes: Sequence[str]
    """What each class is called, in order of its number; a masked LM has none."""


class LayerTeacher(Protocol):
    """A teacher that shows its last layer, too."""

    hidden_size: int
    """D."""
    last_layer: Tensor
    """`[N, D] float32`: what it gave at the positions of the rows that `logits` was last asked for."""


@runtime_checkable
class Remarking(Protocol):
    """A teacher that counts something while it teaches."""

    def remarks(self) -> list[str]:
        """Lines for people, about what this builder taught."""


class ImageTeacher(Protocol):
    """A teacher of images."""

    classes: Sequence[str]
    """What each class is called, in order of its number."""
    image_size: int
    """S: pixels of a side that it is made for."""
    mean: Sequence[float]
    std: Sequence[float]
    """Of each channel, on the scale of 0 to 255: it is fed `(x - mean) / std`."""


TEACHERS: Registry[Callable[[str, TeacherOptions], Teacher]] = Registry(
    "softlabels.teachers",
    {
        "hf": "softlabels.teachers.hf:load_hf",
        "onnx": "softlabels.teachers.onnx:load_onnx",
        "openai": "softlabels.teachers.openai:load_openai",
        "py": "softlabels.teachers.py:load_callable",
        "timm": "softlabels.teachers.timm:load_timm",
        "torchvision": "softlabels.teachers.torchvision:load_torchvision",
        "vllm": "softlabels.teachers.vllm:load_vllm",
    },
)


def causal_only(options: TeacherOptions, spec: str) -> None:
    """Refuse another domain than causal language models.

    Raises:
        ConfigError: names it.
    """
    if options.domain != "causal-lm":
        raise ConfigError(f"--domain {options.domain}: {spec} serves causal-lm only; use hf:PATH")


def open_teacher(spec: str, options: TeacherOptions) -> Teacher:
    """Load `name:argument`.

    Raises:
        ConfigError: an unknown back-end.
        TeacherError: it cannot be loaded, or is not understood.
    """
    name, argument = split_spec(spec, flag="--teacher")
    return TEACHERS.load(name)(argument, options)
