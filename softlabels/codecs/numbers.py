"""`softlabels.numbers`, a codec of numcodecs: what the whole numbers of a packed store stand for.

A store of arrays names it in the attribute `softlabels.codec` of those whose numbers stand for others:

    array = zarr.open_group(shard, mode="r")["log_odds_T1"]
    log_odds = numcodecs.get_codec(array.attrs["softlabels.codec"]).decode(array[:])    # float32, nats

It is no part of the array's own codecs, so the numbers can be read without this package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.abc import Codec

from softlabels.codecs import make_codec
from softlabels.codecs.summary import (
    ENTROPY,
    LABEL_LOGP,
    entropy_of_numbers,
    label_logp_of_numbers,
)
from softlabels.errors import ConfigError, TargetError

SUMMARIES = {
    ("label_logp", LABEL_LOGP): label_logp_of_numbers,
    ("entropy", ENTROPY): entropy_of_numbers,
}


class StoredNumbers(Codec):  # type: ignore[misc]  # numcodecs is not typed
    """Decodes whole numbers to nats.

    Args:
        kind: `values` (log-probabilities up to a constant of their position), `log_odds`, `label_logp` or `entropy`.
        held: how: a codec of values, e.g. `nat16`; of summaries `float16` and `root64`.

    Raises:
        ConfigError: numbers of another kind, or held in another way.
    """

    codec_id = "softlabels.numbers"

    def __init__(self, *, kind: str, held: str) -> None:
        self.kind, self.held = kind, held
        if kind in ("values", "log_odds"):
            codec = make_codec(held)
            self._decode = codec.scores if kind == "values" else codec.odds
        elif (kind, held) in SUMMARIES:
            self._decode = SUMMARIES[kind, held]
        else:
            raise ConfigError(
                f"{self.codec_id}: numbers of the kind {kind!r} held as {held!r} are not known; upgrade softlabels"
            )

    def get_config(self) -> dict[str, Any]:
        """What makes this codec again."""
        return {"id": self.codec_id, "kind": self.kind, "held": self.held}

    def encode(self, buf: Any) -> Any:
        """Refused: how numbers are rounded depends on all of a position, which only a build sees.

        Raises:
            TargetError: always.
        """
        raise TargetError(
            f"{self.codec_id}: only decodes; numbers are chosen for a whole position at a time, by `softlabels build`"
        )

    def decode(self, buf: Any, out: Any = None) -> npt.NDArray[np.float32]:
        """Nats, `float32` of the shape of `buf`.

        Raises:
            ValueError: a number that stands for nothing.
        """
        nats = self._decode(np.asarray(buf, np.uint32))
        if out is None:
            return nats
        out[...] = nats
        return out  # type: ignore[no-any-return]
