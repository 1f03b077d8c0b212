"""Which tokens of a text are hidden, and what is fed in their place.

Both are a function of the seed, the tokens and the view alone, made of whole numbers (docs/format.md, section 12). So a
store holds no masks, and yet builder and trainer feed the same tokens, whatever number a text has in a store that was
made of others. BERT's rule (Devlin et al.
2019, §3.1): of those that are hidden eight in ten become the mask, one another token, one stays.
"""

from __future__ import annotations

import hashlib
from math import floor

import numpy as np
import numpy.typing as npt

from softlabels.errors import FormatError
from softlabels.format.identity import Identity, MaskingRecord, TokenizerRecord

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

MASKED, ATTENDED = "masked", "attended"
TARGETS = (MASKED, ATTENDED)
"""Where targets are: at the hidden tokens, or at all."""
STREAM = 1
"""Last word of the counter: keeps these draws apart from those of the estimators, whose counter begins at 0."""


def masking_of(identity: Identity) -> MaskingRecord:
    """How a store's texts are masked; `FormatError` if the identity does not say so, or not by which id there is."""
    masking = identity.masking
    if masking is None or "mask" not in identity.tokenizer.special_ids:
        raise FormatError(
            f"a store of the domain {identity.domain} says in `masking` how its texts are masked, and in the "
            "tokenizer's `special_ids` which id is the mask; this one does not; copy it again from its source"
        )
    mask, ids = identity.tokenizer.special_ids["mask"], identity.tokenizer.vocab_size
    if mask >= ids:
        raise FormatError(
            f"the tokenizer's `special_ids` say that {mask} is the mask, and its ids are 0..{ids - 1}; copy the store "
            "again from its source"
        )
    if masking.targets not in TARGETS:
        raise FormatError(
            f"masking has targets = {masking.targets!r}, expected {' or '.join(TARGETS)}; upgrade softlabels"
        )
    return masking


def unmaskable(input_ids: Int32, tokenizer: TokenizerRecord) -> npt.NDArray[np.bool_]:
    """`[S]`: the tokenizer's special ids, which are never hidden."""
    return np.isin(input_ids, np.array([*tokenizer.special_ids.values()], np.int64))


def mask_tokens(
    input_ids: Int32,
    masking: MaskingRecord,
    tokenizer: TokenizerRecord,
    *,
    view: int,
) -> tuple[Int32, Int64]:
    """What is fed in place of tokens `[S]`, and which `[M]` are hidden, ascending.

    Of the C tokens that may be hidden `floor(share * C + 0.5)` are, at least one if there is one.
    """
    candidates = np.flatnonzero(~unmaskable(input_ids, tokenizer))
    count = min(len(candidates), max(1, floor(masking.share * len(candidates) + 0.5)))
    text = hashlib.sha256(np.ascontiguousarray(input_ids, "<i4").tobytes()).digest()[:8]
    philox = np.random.Philox(
        key=np.array([masking.seed, int.from_bytes(text, "little")], np.uint64),
        counter=np.array([0, 0, view, STREAM], np.uint64),
    )
    raw = philox.random_raw(2 * len(input_ids)).reshape(-1, 2)
    order = np.argsort(raw[candidates, 0], kind="stable")
    hidden = np.sort(candidates[order[:count]])
    lot = raw[hidden, 1]
    tenth = lot % np.uint64(10)
    fed = input_ids.copy()
    fed[hidden[tenth < 8]] = tokenizer.special_ids["mask"]
    other = (lot // np.uint64(10)) % np.uint64(tokenizer.vocab_size)
    fed[hidden[tenth == 8]] = other[tenth == 8].astype(np.int32)
    return fed, hidden
