"""Value codecs: how numbers are held in a file, with a bound on what that costs.

A codec is a small frozen dataclass. Two codecs share an id if and only if each decodes what the other
wrote. To add one: one file here, one line in `CODECS`, one file in tests/codecs, encoded bytes in
tests/fixtures.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from softlabels.registry import Registry

__all__ = ["CODECS", "ValueCodec", "make_codec"]


class ValueCodec(Protocol):
    """Turns float32 values (nats, `-inf` allowed) into a plain array and back."""

    id: ClassVar[str]
    relative_error: ClassVar[float]
    """`|decoded - value| <= relative_error * |value| + absolute_error`."""
    absolute_error: ClassVar[float]

    def encode(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Encode; `TargetError` if a value cannot be held within the bound."""

    def decode(self, encoded: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Decode to float32."""


CODECS: Registry[type[Any]] = Registry(
    "softlabels.codecs",
    {
        "float16": "softlabels.codecs.floating:Float16",
        "float32": "softlabels.codecs.floating:Float32",
    },
)


def make_codec(codec_id: str) -> ValueCodec:
    """Build a registered codec.

    Raises:
        ConfigError: unknown id.
    """
    codec: ValueCodec = CODECS.load(codec_id)()
    return codec
