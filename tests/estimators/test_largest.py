import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softlabels.estimators.largest import BLOCK, FEWEST_BLOCKS, largest


@given(
    seed=st.integers(0, 2**31),
    k=st.integers(1, 9),
    blocks=st.integers(FEWEST_BLOCKS * 9, 60),
    short=st.integers(0, BLOCK - 1),
    levels=st.sampled_from([1, 2, 5, 1000, None]),
    scale=st.sampled_from([0.01, 1.0, 1e30]),
)
def test_equals_a_sort_whatever_the_ties(seed, k, blocks, short, levels, scale):
    """Few levels: thousands of equal logits, and many blocks of equal maxima."""
    g = torch.Generator().manual_seed(seed)
    v = blocks * BLOCK + short
    logits = torch.randn(3, v, generator=g) * scale
    if levels is not None:
        logits = torch.randint(0, levels, (3, v), generator=g).float() * scale
    top, ids = largest(logits, k)
    assert torch.equal(top, logits.sort(1, descending=True).values[:, :k])
    assert torch.equal(logits.gather(1, ids), top)
    for row in ids:
        assert len(set(row.tolist())) == k
    again = largest(logits.clone(), k)
    assert torch.equal(again[1], ids)
    alone = torch.cat([largest(logits[i : i + 1], k)[1] for i in range(3)])
    assert torch.equal(alone, ids)  # whatever else is in the chunk


@pytest.mark.parametrize("short", [0, 1, 63])
@pytest.mark.parametrize("crowd", ["first", "last", "one block"])
def test_wherever_the_largest_lie(short, crowd):
    k, v = 8, 64 * BLOCK + short
    where = {"first": slice(0, k), "last": slice(v - k, v), "one block": slice(130, 130 + k)}[crowd]
    logits = torch.randn(2, v, generator=torch.Generator().manual_seed(0))
    logits[:, where] = torch.arange(k).float() + 100
    top, ids = largest(logits, k)
    expected = list(range(where.start, where.stop))[::-1]
    assert ids.tolist() == [expected] * 2
    assert top[0].tolist() == [107.0, 106.0, 105.0, 104.0, 103.0, 102.0, 101.0, 100.0]


def test_all_ids_of_a_small_vocabulary():
    logits = torch.randn(2, 70)
    top, ids = largest(logits, 70)
    assert torch.equal(top, logits.sort(1, descending=True).values)
    assert torch.equal(ids.sort(1).values, torch.arange(70).expand(2, -1))
