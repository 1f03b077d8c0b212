"""Codecs: how numbers are held in a file, with a bound on what that costs.

`streams` codes whole numbers, `codebook` turns ids into whole numbers, and the registered value codecs of
this page turn log-probabilities and log-odds into numbers and back.

A value codec is a small frozen dataclass. Two share an id if and only if each decodes what the other
wrote. To add one: one file here, one line in `CODECS`, one file in tests/codecs, encoded bytes in
tests/fixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from softlabels.core.registry import Registry
from softlabels.core.targets import SoftTargets
from softlabels.errors import ConfigError


class Numbers(NamedTuple):
    """Targets as whole numbers."""

    values: npt.NDArray[np.uint32]
    """`[N, K] uint32`, the larger the less likely; anything in slots that are not kept."""
    odds: npt.NDArray[np.uint32]
    """`[N, G] uint32`."""


class Rounding(NamedTuple):
    """How far off what a reader has may be, in nats."""

    gaps: npt.NDArray[np.float64]
    """Each gap, of the shape of those that were asked for."""
    odds: float
    """A log-odds."""


class ValueCodec(Protocol):
    """Turns values (nats, `-inf` allowed) into whole numbers and back."""

    @property
    def id(self) -> str:
        """Its name in the registry and in manifests."""

    @property
    def plain(self) -> bool:
        """Whether it is a `PlainCodec` too, which the profile `open` needs."""

    @property
    def relative_error(self) -> float:
        """A log-probability v of the teacher at T=1 is held within `relative_error * |v| + absolute_error`."""

    @property
    def samples_only(self) -> bool:
        """Whether it holds nothing but the weights of samples."""

    @property
    def unbiased(self) -> bool:
        """Whether the mean weight that a reader derives of a sample, over `uniforms`, is exactly the weight."""

    @property
    def label_first(self) -> bool:
        """Whether ids are coded with the label as code 0 (`format/packed.py`)."""

    @property
    def by_id(self) -> bool:
        """Whether kept sets are written in order of id rather than of value (`format/by_id.py`)."""

    def absolute_error(self, *, sample: bool) -> float:
        """See `relative_error`; the log weights of a sample may have another bound than log-probabilities."""

    def rounding(self, gaps: npt.NDArray[np.float64]) -> Rounding | None:
        """Of gaps that a reader has, where rounding differs from id to id; None: `absolute_error` says all."""

    def to_numbers(self, targets: SoftTargets, uniforms: npt.NDArray[np.float64] | None) -> Numbers:
        """Whole numbers of N targets; `TargetError` if one cannot be held within the bound.

        `uniforms` is `[N, K]` in [0, 1) if the kept sets are samples, else None.
        """

    def scores(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Log-probabilities up to a constant of each position, from `Numbers.values` of any shape."""

    def odds(self, numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
        """Log-odds from `Numbers.odds`."""


class PlainCodec(ValueCodec, Protocol):
    """One whose values are numbers that any reader of Parquet or Zarr understands."""

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Encode log-probabilities or log-odds; `TargetError` if one cannot be held within the bound."""

    def decode(self, encoded: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Decode to float32."""


CODECS: Registry[Callable[..., ValueCodec]] = Registry(
    "softlabels.codecs",
    {
        "float16": "softlabels.codecs.floating:Float16",
        "float32": "softlabels.codecs.floating:Float32",
        "counts": "softlabels.codecs.counts:Counts",
        "nat8": "softlabels.codecs.steps:nat8",
        "nat16": "softlabels.codecs.steps:nat16",
        "nat32": "softlabels.codecs.steps:nat32",
        "nat64": "softlabels.codecs.steps:nat64",
        "companded": "softlabels.codecs.companded:Companded",
    },
    flag="--values",
)


def make_codec(spec: str) -> ValueCodec:
    """Build a registered codec, `NAME` or `NAME?parameter=value`; `ConfigError` if there is none such."""
    codec: ValueCodec = CODECS.make(spec)
    for declaration in ("samples_only", "unbiased", "label_first", "by_id"):
        if not isinstance(getattr(codec, declaration, None), bool):
            raise ConfigError(
                f"--values {spec}: declares no `{declaration}`, so nobody knows which targets it is fit for; add it to "
                "the codec (softlabels.codecs.ValueCodec)"
            )
    if not callable(getattr(codec, "rounding", None)):
        raise ConfigError(
            f"--values {spec}: declares no `rounding`, so nobody knows how far off its gaps may be; add it to the "
            "codec (softlabels.codecs.ValueCodec)"
        )
    return codec


def check_fits(codec: ValueCodec, *, sample: bool) -> None:
    """Refuse a codec of samples for probabilities.

    Raises:
        ConfigError: names the flag, and the way out.
    """
    if codec.samples_only and not sample:
        raise ConfigError(
            f"--values {codec.id}: holds the weights of samples only, and this estimator keeps probabilities; use "
            "--values nat16"
        )
