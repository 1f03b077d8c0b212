"""What a comparison is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

from softlabels.core.settings import Group, check_at_least
from softlabels.errors import ConfigError

T = TypeVar("T")
Devices = Annotated[T, Group("Device and memory")]
Files = Annotated[T, Group("Files")]
Figures = Annotated[T, Group("Figures")]


@dataclass(frozen=True, kw_only=True)
class KldConfig:
    """One comparison of candidates with a reference."""

    store: str
    """Reference: a store, such as `softlabels reference` makes; a path or an address."""
    wide: str | None = None
    """Store of some of its rows with more ids, which says what lies beyond its own (default: STORE-wide, if there)."""
    inputs: str | None = None
    """Store that holds the inputs of a reference without (`softlabels subset --drop-inputs`); joined by digest."""
    limit_rows: Figures[int | None] = None
    """Compare on the first so many rows."""
    bootstrap: Figures[int] = 1000
    """Replicates, of whole rows, for the 95 % intervals; 0 leaves them out."""
    seed: Figures[int] = 0
    """Seed of the resamplings."""
    list_k: Figures[int | None] = None
    """Ids to ask of a candidate that lists log-probabilities (vllm:PATH?seam=list, openai:); default as many as the
    reference keeps."""
    work: Files[str | None] = None
    """Folder in which finished rows of each candidate are kept: the same command goes on there after it was stopped."""
    device: Devices[str] = "auto"
    """Where candidates run."""
    dtype: Devices[str] = "auto"
    """Number type of each candidate's body; `auto`: the one that its folder was saved in."""
    batch_tokens: Devices[int] = 2048
    """Tokens in one forward pass, padding included."""
    head_mib: Devices[int | None] = None
    """MiB of logits that exist at a time; default 64 on a CPU, 256 on a GPU."""

    def __post_init__(self) -> None:
        check_at_least(
            self, limit_rows=1, bootstrap=0, seed=0, list_k=1, batch_tokens=1, head_mib=1
        )
        if self.bootstrap > 100_000:
            raise ConfigError(f"--bootstrap {self.bootstrap}: expected at most 100000")
