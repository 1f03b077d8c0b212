"""What decides what a store holds: the structs of its identity, and the checked types that all records use."""

from __future__ import annotations

from typing import Annotated

import msgspec

from softlabels.core.kept import KeptSet, kept_set
from softlabels.core.records import Count, Positive, Record, Sha256

ROWS_LIMIT = 2**22
"""Rows of a shard, at most: each becomes an object, and the order of a block's rows is held in memory."""
LARGEST_VIEW = 4096
"""Pixels of a side of an image's view: one takes 48 MiB, and 192 MiB as a model is fed it."""

Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Ids = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""How many ids there are: each is a signed number of 32 bits."""
SPECIAL_LIMIT = 256
"""Special ids of a tokenizer: every row of a masked store is compared with all of them."""
Name = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$(?!\n)")
]
Number = Annotated[float, msgspec.Meta(ge=0)]

OPEN_PARTS = "open-parts"
"""The profile `open` of a store that holds shards of several builds: a reader that does not know `counts_from`
refuses it by this name."""
PACKED_ARRAYS = "packed-arrays"
"""The profile `packed` in Zarr, each stream an array of its name."""
OPEN_TARGETS = "open-targets"
"""The profile `open` without the columns that hold inputs: only their digests are there."""


class TeacherRecord(Record, frozen=True, kw_only=True):
    """The model that gave the targets."""

    spec: str
    """As the user named it, without the folder that it lies in, e.g. `hf:teacher`."""
    name: str
    revision: str | None
    weights_sha256: Sha256
    """Over the weight files: name and content, in order of name. Where there are none to see, see docs/teachers.md."""
    dtype: str
    device: str
    engine: str
    """Library and version that ran it."""
    vocab_size: Ids
    """V: the width of its head."""
    parameters: Count
    """0: not known."""


class TokenizerRecord(Record, frozen=True, kw_only=True):
    """What turned text into ids."""

    sha256: Sha256
    """Of the tokenizer's own serialised form."""
    vocab_size: Ids
    special_ids: Annotated[
        dict[str, Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]],
        msgspec.Meta(max_length=SPECIAL_LIMIT),
    ]
    """`bos`, `eos`, `pad`, `unk`, where it has them."""


class CorpusRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What text it was."""

    specs: list[str]
    """As the user named them, without the folders that they lie in, e.g. `text:*.txt`."""
    fingerprint: Sha256
    """Over every row's input digest, in order."""
    seq_len: Positive
    documents: Count
    rows: Positive
    tokens: Positive
    positions: Positive
    skipped_empty: Count
    """Documents left out on the user's word because they were empty."""
    skipped_short: Count
    """Documents of one token: nothing in them can be predicted."""
    limit_rows: Positive | None
    """`--limit-rows`, if it was given; fewer rows then say that the corpus ended first."""
    truncated: Count = 0
    """Texts cut to `seq_len` tokens on the user's word; only where a text is one row."""


class TargetRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What was kept of each distribution."""

    estimator: str
    """Its name, and after it the parameters of its own, if it has any: `NAME?parameter=value`."""
    k: Positive
    """No position keeps more ids."""
    temperatures: list[Annotated[float, msgspec.Meta(gt=0)]]
    seed: Seed
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """Of `topp`: the mass at T=1 that the kept ids reach."""
    min_k: Positive | None = None
    """Of `topp`: no position keeps fewer."""
    mean_k: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """The mean number of kept ids that was asked for, of which `k` was made; absent: `k` was said."""
    positions: str | None = None
    """Which positions have a soft target, e.g. `random:0.25` or `entropy:0.25`, the others being hard-label only;
    absent: all have one."""
    declared: KeptSet | None = None
    """What the kept ids are, of an estimator that format 1.3 did not know; absent: one that it knew."""

    @property
    def keeps(self) -> KeptSet:
        """What the kept ids and their values mean."""
        return kept_set(self.estimator, self.declared)


class MaskingRecord(Record, frozen=True, kw_only=True):
    """How texts are masked. With the tokenizer's `special_ids` and `vocab_size` it decides every mask."""

    share: Annotated[float, msgspec.Meta(gt=0, le=1)]
    """Of a row's tokens, marks aside, that are hidden."""
    targets: str
    """Where targets are: `masked`, at the hidden tokens; `attended`, at all, of which the hidden ones have a label."""
    views: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    """Masked views of each text."""
    seed: Seed


class HiddenRecord(Record, frozen=True, kw_only=True):
    """Hidden states of the teacher, beside its distributions."""

    values: str
    """How they are held: `int8` or `float16`."""
    width: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    """D."""
    error: Number
    """A number is held within this share of the largest absolute value of its position, or 2^-25 if that is more."""


class SummaryRecord(Record, frozen=True, kw_only=True):
    """Summaries of positions: the label's log-probability, the teacher's entropy, its likeliest id."""

    vocab_size: Positive
    """Over how many ids the teacher's distribution is; a view has fewer."""
    label_logp: str
    """How log-probabilities are held: `float16`."""
    entropy: str
    """How entropies are held: `root64`."""


class EncodingRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How it is held in files."""

    profile: str
    container: str
    values: str
    """Codec of log-probabilities and log-odds, and after its name parameters of its own: `NAME?parameter=value`."""
    relative_error: Number
    absolute_error: Number
    """A log-probability v is held within `relative_error * |v| + absolute_error`, in nats."""
    dictionary_shards: Count | None = None
    """Of `packed`: shards from this one on may be coded with the store's dictionary, which was trained on
    those before, or, if it is 0, given; absent: none is."""
    dictionary_sha256: Sha256 | None = None
    """Of the dictionary that was given."""
    packages: list[str] | None = None
    """Packages that container and codec come from, where they are not softlabels' own: what a reader must have."""

    @property
    def plain(self) -> bool:
        """Whether shards are plain columns: `open`, and what goes by another name to older readers."""
        return self.profile in ("open", OPEN_PARTS, OPEN_TARGETS)

    @property
    def asked_profile(self) -> str:
        """What a user calls the profile: `open` or `packed`."""
        return "open" if self.plain else "packed"

    @property
    def has_inputs(self) -> bool:
        """Whether rows hold their inputs, not only digests of them."""
        return self.profile != OPEN_TARGETS


def held_profile(profile: str, container: str) -> str:
    """What a new store's record says of the profile that was asked for."""
    return PACKED_ARRAYS if (profile, container) == ("packed", "zarr") else profile


class ReplaySample(Record, frozen=True, kw_only=True):
    """A view whose pixels whoever trains can compare with the builder's."""

    document: Count
    view: Count
    sha256: Sha256
    """Of its pixels (docs/format.md, section 12)."""


class ImageRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How the views of images are made."""

    images: Positive
    """How many there are to be partners in a mixture."""
    views: Positive
    """Of each image."""
    size: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_VIEW)]
    """Pixels of a side."""
    augment: str
    """How views differ from their image, e.g. `crop:4,flip`."""
    mean: Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]
    std: Annotated[
        list[Annotated[float, msgspec.Meta(gt=0)]], msgspec.Meta(min_length=3, max_length=3)
    ]
    """Of each channel, on the scale of 0 to 255: a model is fed `(x - mean) / std`."""
    software: dict[str, str]
    """Libraries and their versions that made them; informative."""
    replay: Annotated[list[ReplaySample], msgspec.Meta(max_length=1024)]
    check_every: Positive | None = None
    """A view has a check of its pixels if its image's number and its own sum to a multiple of it; absent: each has."""


class Identity(Record, frozen=True, kw_only=True, omit_defaults=True):
    """All that decides what a store holds; equal identities give equal stores."""

    domain: str
    label_shift: Count
    teacher: TeacherRecord
    tokenizer: TokenizerRecord
    corpus: CorpusRecord
    targets: TargetRecord
    encoding: EncodingRecord
    licence: str
    classes: list[str] | None = None
    """Of classification: what each id of a target means."""
    masking: MaskingRecord | None = None
    """Of `masked-lm`: which tokens were hidden from the teacher."""
    hidden: HiddenRecord | None = None
    """Of `masked-lm`: what the teacher's last layer gave at each position; absent: not kept."""
    images: ImageRecord | None = None
    """Of `image-classification`."""
    summary: SummaryRecord | None = None
    """What the teacher's whole distribution says at each position; absent: not kept."""
