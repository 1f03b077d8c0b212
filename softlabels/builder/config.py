"""What a build, and each other command that needs a teacher, is asked for: from flags, from TOML, or from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from softlabels.builder.purposes import FOR, Purpose
from softlabels.core.registry import name_of
from softlabels.core.settings import Group, check_at_least, from_sources
from softlabels.errors import ConfigError
from softlabels.format.identity import LARGEST_VIEW, ROWS_LIMIT

if TYPE_CHECKING:
    from softlabels.estimators import Estimator
T = TypeVar("T")
Teacher = Annotated[T, Group("Teacher")]
Corpus = Annotated[T, Group("Corpus")]
Targets = Annotated[T, Group("Targets")]
Views = Annotated[T, Group("Masks and views")]
Files = Annotated[T, Group("Files")]
Devices = Annotated[T, Group("Device and memory")]


OWNED = ("mask_share", "mask_targets", "hidden", "augment", "image_size", "check_every", "views")
"""Settings that only some domains have: those whose `maker` names them."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """One build: teacher, corpus, what to keep, how to run."""

    teacher: Teacher[tuple[str, ...] | str]
    """`hf:PATH`, `onnx:FILE`, `py:MODULE.FUNCTION`, `vllm:PATH`, `sglang:PATH`, `openai:URL`,
    `pooling:URL?head=MODEL`, `hidden:DIR?head=MODEL`; several, as `hf:PATH=WEIGHT`, are averaged. See
    docs/teachers.md."""
    corpus: Corpus[tuple[str, ...]]
    """`text:GLOB`, `jsonl:GLOB`, `parquet:GLOB#COLUMN`, `dataset:PATH#COLUMN`, `ids:GLOB`; a path alone goes by its
    suffix (`book.txt`, `chats.jsonl`, a folder of such files). Records are texts, conversations, prompts with
    completions; see docs/corpora.md. For images: `images:FOLDER`, `image-parquet:GLOB`, `arrays:FILE`, `idx:PREFIX`.
    Several are taken in order."""
    domain: Corpus[str] = "causal-lm"
    """What is taught, e.g. `causal-lm`, `masked-lm` or `sequence-classification`; docs/domains.md has all."""
    augment: Views[str | None] = None
    """How views differ from their image, e.g. `crop:4,flip,colour:0.2,mixup:0.2`; see docs/vision.md."""
    image_size: Views[int | None] = None
    """Pixels of an image's side as the teacher sees it; default the teacher's own."""
    check_every: Views[int | None] = None
    """Views for each one that carries a check of its pixels; default 16. 1 checks all, for 0.9 bytes more each."""
    truncate: Corpus[bool] = False
    """Cut texts that are longer than a row, and count them, rather than refuse them, where a text is one row."""
    average: Teacher[str] = "probs"
    """What to average over several teachers: their `probs` or their `logits`."""
    estimator: Targets[str] = "sampled"
    """What to keep of each distribution: `sampled`, `systematic`, `topk`, `topp`, `rs` or `dense`, or one that is
    installed, with parameters of its own as in `NAME?parameter=value`."""
    k: Targets[int | None] = None
    """Ids kept at each position; the most for `topp`, the draws for `systematic` and `rs`, all V for `dense`. Default
    12 for `sampled`, 35 for `systematic` and `rs`, 50 for `topk` and `topp`."""
    mean_k: Targets[float | None] = None
    """Ids to keep at a position on average: takes the --k that does so on the first rows, for `systematic` and `rs`."""
    top_p: Targets[float | None] = None
    """Mass to reach with the fewest ids, for `topp`."""
    min_k: Targets[int | None] = None
    """Fewest ids to keep at a position, for `topp`; default 1."""
    temperature: Targets[tuple[float, ...]] = (1.0,)
    """Temperatures at which the store is exact (topk, topp, dense) or unbiased (a sample: one)."""
    seq_len: Corpus[int] = 512
    """Tokens in a row, at most."""
    shard_rows: Files[int | None] = None
    """Rows in a shard; default 256, or more of a corpus so large that a plan would not hold its shards. A killed
    builder loses at most two shards: one being taught, one being written."""
    limit_rows: Corpus[int | None] = None
    """Stop after this many rows of the corpus."""
    profile: Files[str] = "open"
    """`open`: plain columns that other tools read; `packed`: about half the bytes."""
    container: Files[str] = "parquet"
    """`parquet` or `zarr`, or one that is installed."""
    values: Files[str | None] = None
    """Codec of the stored numbers: `float16` or `float32`. Packed stores take `nat8` to `nat64`, log-probabilities
    within 1/16 to 1/128 nat, or `companded`, finer for likely ids and coarser for rare ones. Samples take `counts`,
    too: whole-number weights, whose mean is exact. One that is installed may have parameters, as in
    `NAME?parameter=value`. Default: float16 if open. If packed: nat16 (nat8 takes a top-50 from 82 to 76 bytes a
    position), nat8 for `sampled`, counts for `systematic` and `rs`."""
    dictionary: Files[str] = "auto"
    """Dictionary of ids of a packed store: `auto`, `none`, the path of one, or of a store that has one. Where it
    pays, `auto` trains one on the first 200,000 positions."""
    positions: Targets[str | None] = None
    """Which positions get a soft target: `random:SHARE`, or `entropy:SHARE` (of each row the least certain); the
    others are hard-label only. Default: all do."""
    seed: Targets[int] = 0
    """Seed of random estimators, of `--positions random:…` and of masks."""
    mask_share: Views[float | None] = None
    """Share of a text's tokens that are hidden, for `masked-lm`; default 0.15."""
    mask_targets: Views[str | None] = None
    """Where targets are, for `masked-lm`: `masked`, at the hidden tokens (default), or `attended`, at all tokens."""
    hidden: Targets[str | None] = None
    """Keep the teacher's last hidden states as well, as `int8` or `float16`, for `masked-lm`."""
    position_summary: Targets[bool] = True
    """Keep the label's exact log-probability, the teacher's entropy and its likeliest id: up to 3 bytes a position."""
    views: Views[int] = 1
    """Masked views of each text, or augmented views of each image."""
    skip_empty: Corpus[bool] = False
    """Leave empty documents out (and count them) rather than refuse them."""
    licence: Corpus[str] = "unknown"
    """Licence of the stored targets, as an SPDX expression if there is one; recorded, not interpreted."""
    device: Devices[str] = "auto"
    """Where the teacher runs: `auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Devices[str] = "auto"
    """Precision of the teacher's body: `auto`, `float32`, `bfloat16` or `float16`; its head computes in float32."""
    batch_tokens: Devices[int] = 2048
    """Tokens in one forward pass of the teacher, padding included."""
    head_mib: Devices[int | None] = None
    """MiB of logits that exist at a time; default 64 on a CPU, 256 on a GPU."""

    def __post_init__(self) -> None:
        from softlabels.codecs import (  # NumPy and torch, which --help can do without
            CODECS,
            check_fits,
            make_codec,
        )
        from softlabels.core.positions import PositionRule
        from softlabels.domains import DOMAINS
        from softlabels.estimators import ESTIMATORS

        if not isinstance(self.teacher, str) and len(self.teacher) == 1:
            object.__setattr__(self, "teacher", self.teacher[0])
        if not self.teacher:
            raise ConfigError("--teacher: give at least one")
        if self.average not in ("probs", "logits"):
            raise ConfigError(f"--average {self.average!r}: expected probs or logits")
        if self.average != "probs" and isinstance(self.teacher, str):
            raise ConfigError(f"--average {self.average}: belongs to several --teacher")
        if not self.corpus:
            raise ConfigError("--corpus: give at least one")
        check_at_least(
            self,
            seq_len=2,
            shard_rows=1,
            batch_tokens=1,
            limit_rows=1,
            head_mib=1,
            views=1,
            seed=0,
            image_size=1,
            check_every=1,
        )
        # before the teacher is loaded
        check_known("--domain", self.domain, DOMAINS.names())
        check_known("--estimator", name_of(self.estimator)[0], ESTIMATORS.names())
        check_encoding(self.profile, self.container, self.values)
        object.__setattr__(
            self, "corpus", tuple(DOMAINS.load(self.domain).maker.spelled(self.corpus))
        )
        object.__setattr__(self, "k", self.make_estimator().k)
        spelled = ESTIMATORS.spelled(self.estimator, **self._estimator_flags)
        object.__setattr__(self, "estimator", spelled)
        if self.values is not None:
            object.__setattr__(self, "values", CODECS.spelled(self.values))
        if self.profile != "packed" and self.dictionary not in ("auto", "none"):
            raise ConfigError(f"--dictionary {self.dictionary}: belongs to --profile packed")
        if self.positions is not None:
            PositionRule.parse(self.positions)
        if self.mean_k is not None and not 0 < self.mean_k < float("inf"):
            raise ConfigError(f"--mean-k {self.mean_k}: expected a number above 0")
        self._check_domain()
        for flag, value, most in (
            ("shard-rows", self.shard_rows or 1, ROWS_LIMIT),
            ("image-size", self.image_size or 1, LARGEST_VIEW),
            ("views", self.views, 2**31 - 1),
        ):
            if value > most:
                raise ConfigError(f"--{flag} {value}: expected at most {most}")
        check_fits(make_codec(self.stored_values), sample=self.make_estimator().keeps.sample)

    def _check_domain(self) -> None:
        """Settings of other domains are refused, the domain looks at its own."""
        from softlabels.domains import DOMAINS

        def takes(domain: str) -> frozenset[str]:
            settings: frozenset[str] = DOMAINS.load(domain).maker.settings
            return settings

        defaults = {f.name: f.default for f in fields(self)}
        for name in (n for n in OWNED if n not in takes(self.domain)):
            if getattr(self, name) != defaults[name]:
                takers = " or ".join(d for d in DOMAINS.names() if name in takes(d))
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: belongs to --domain {takers}, not to "
                    f"{self.domain}"
                )
        DOMAINS.load(self.domain).maker.check(self)

    @classmethod
    def from_sources(
        cls, toml: Path | None, flags: Mapping[str, Any], *, purpose: Purpose | None = None
    ) -> BuildConfig:
        """Flags over TOML over what suits the purpose over defaults; see `softlabels.core.settings`."""
        base = None if purpose is None else purpose.settings
        return from_sources(cls, toml, flags, base=base, aside=(FOR,))

    @property
    def stored_values(self) -> str:
        """Codec of the stored numbers."""
        if self.values is not None:
            return self.values
        if self.profile != "packed":
            return "float16"
        estimator = self.make_estimator()
        return "nat16" if not estimator.keeps.sample else "counts" if estimator.counts else "nat8"

    def make_estimator(self) -> Estimator:
        """The estimator, with its parameters.

        Raises:
            ConfigError: an impossible one, or one that does not declare what it keeps.
        """
        from softlabels.estimators import make_estimator

        return make_estimator(self.estimator, self._estimator_flags)

    @property
    def _estimator_flags(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "temperatures": tuple(sorted(self.temperature)),
            "top_p": self.top_p,
            "min_k": self.min_k,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as TOML would hold them."""
        return asdict(self)


def check_known(flag: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name that is none of these.

    Raises:
        ConfigError: names the flag, and what it may be.
    """
    if name not in known:
        raise ConfigError(f"{flag} {name!r}: expected one of {', '.join(known)}")


def check_encoding(profile: str, container: str, values: str | None) -> None:
    """Refuse an encoding that there is not, or whose profile cannot hold its values.

    Raises:
        ConfigError: names the flag.
    """
    from softlabels.codecs import CODECS, make_codec
    from softlabels.format.encoding import CONTAINERS, PROFILES

    check_known("--profile", profile, PROFILES)
    check_known("--container", container, CONTAINERS.names())
    if values is None:
        return
    check_known("--values", name_of(values)[0], CODECS.names())
    if profile == "open" and not make_codec(values).plain:
        raise ConfigError(
            f"--values {values}: the profile 'open' holds float16 or float32; give one of them, or --profile packed"
        )


@dataclass(frozen=True, kw_only=True)
class AppendConfig:
    """What an append is asked for; all else is as the store says."""

    teacher: str
    """The store's teacher: `hf:PATH`. Stores do not say where it lies."""
    corpus: tuple[str, ...]
    """The new documents: `text:GLOB`, `jsonl:GLOB`; several are taken in order."""
    limit_rows: int | None = None
    """Stop after this many new rows."""
    skip_empty: bool = False
    """Leave empty documents out (and count them) rather than refuse them."""
    truncate: bool = False
    """Cut texts that are longer than a row (and count them) rather than refuse them, where a text is one row."""
    device: str = "auto"
    """Where the teacher runs."""
    batch_tokens: int = 2048
    """Tokens in one forward pass of the teacher, padding included."""
    head_mib: int | None = None
    """MiB of logits that exist at a time; default 64 on a CPU, 256 on a GPU."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """One measurement."""

    teacher: str
    """`hf:PATH`, the teacher that made the store."""
    positions: int = 4096
    """Positions with a soft target to compare, about: whole rows are taken."""
    seed: int = 0
    """Seed of the choice of rows."""
    device: str = "auto"
    """Where the teacher runs."""
    dtype: str = "auto"
    """Number type in which the teacher's body computes; `auto`: the one that it had for the store."""
    head_mib: int | None = None
    """MiB of logits that exist at a time; default 64 on a CPU, 256 on a GPU. The comparison takes ten times that."""

    def __post_init__(self) -> None:
        check_at_least(self, positions=1, seed=0, head_mib=1)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How an imported store is written."""

    teacher: str
    """`hf:PATH`, the teacher that the log-probabilities are of: its digests go into the manifest."""
    profile: str = "open"
    """`open` or `packed`."""
    container: str = "parquet"
    """`parquet` or `zarr`."""
    values: str | None = None
    """Codec of the stored numbers, as in `softlabels build`."""
    shard_rows: int = 256
    """Rows in a shard."""
    licence: str = "unknown"
    """Licence of the stored targets, an SPDX expression."""


@dataclass(frozen=True, kw_only=True)
class StatesConfig:
    """The states of one store's rows."""

    teacher: str
    """`hf:PATH`, the teacher that made the store."""
    device: str = "auto"
    """Where the teacher runs."""
    dtype: str = "auto"
    """Number type in which the teacher's body computes, and in which its states are kept; `auto`: the one that it had
    for the store."""
