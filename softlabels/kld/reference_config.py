"""What a reference is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

from softlabels.core.settings import Group, check_at_least
from softlabels.errors import ConfigError

T = TypeVar("T")
Texts = Annotated[T, Group("Texts")]
Files = Annotated[T, Group("Files")]
Devices = Annotated[T, Group("Device and memory")]
Kept = Annotated[T, Group("What is kept")]


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """One reference."""

    text: Texts[tuple[str, ...]] = ()
    """Text files, a GLOB; several are taken in order."""
    corpus: Texts[tuple[str, ...]] = ()
    """Other sources of text, as `softlabels build --corpus` takes them."""
    seq_len: Texts[int] = 512
    """Tokens in a row, at most."""
    limit_rows: Texts[int | None] = None
    """Stop after this many rows."""
    k: Kept[int] = 64
    """Ids kept at each position."""
    values: Kept[str] = "companded"
    """Codec of the stored numbers, as `softlabels build --values` takes it; packed. `nat64` and `float32` are more
    precise."""
    wide_every: Kept[int | None] = None
    """Every so many rows get --wide-k ids in a second store, STORE-wide; 0: none do. Default: every 256th, and of a
    short text as many as have 512 positions."""
    wide_k: Kept[int] = 1024
    """Ids kept at each position of these."""
    shard_rows: Files[int] = 64
    """Rows in a shard."""
    licence: Files[str] = "unknown"
    """Licence of the stored targets, as an SPDX expression if there is one."""
    device: Devices[str] = "auto"
    """Where the model runs."""
    dtype: Devices[str] = "auto"
    """Number type of the model's body; `auto`: the one that its folder was saved in."""
    batch_tokens: Devices[int] = 2048
    """Tokens in one forward pass, padding included."""
    head_mib: Devices[int | None] = None
    """MiB of logits that exist at a time; default 64 on a CPU, 256 on a GPU."""

    def __post_init__(self) -> None:
        check_at_least(self, k=1, wide_every=0, wide_k=1)
        if not self.text and not self.corpus:
            raise ConfigError("--text: give at least one, or --corpus")
        if self.wide_every != 0 and self.wide_k <= self.k:
            raise ConfigError(
                f"--wide-k {self.wide_k}: expected more than --k {self.k}; --wide-every 0 does without"
            )
