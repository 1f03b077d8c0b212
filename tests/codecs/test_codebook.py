"""Codebooks: ids come back whatever they are; dictionaries are small, useful and refused if malformed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlabels.codecs import codebook, training
from softlabels.codecs.codebook import Codebook
from softlabels.codecs.streams import Stream, join, pack, split
from softlabels.codecs.training import count, order_of, train
from softlabels.errors import IntegrityError

NO_ORDER = Codebook(order=np.zeros(0, np.int32), classes=np.zeros(0, np.int32))


def ints(values):
    return np.array(values, np.int32)


def distinct(rng, n, k, ids):
    """`[n, k]`: k of `ids` at each position."""
    return np.stack([rng.choice(ids, k, replace=False) for _ in range(n)]).astype(np.int32)


def round_trip(book, tokens, ids):
    """Codes of ids; decoded they must be the ids again."""
    assert (np.diff(tokens) >= 0).all()
    codes = book.encode(tokens, ids)
    assert codes.dtype == np.uint32
    assert codes.shape == ids.shape
    offsets = book.offsets(tokens)
    for j in range(ids.shape[1]):
        back = book.decode(codes[:, j], *offsets)
        assert back.dtype == np.int32
        np.testing.assert_array_equal(back, ids[:, j])
    return codes


def teacher(rng, n, k, v, *, follows=40, seen=30, noise=0.1):
    """Tokens and ids of a made-up teacher that keeps, but for noise, the same ids after the same token."""
    favourites = rng.integers(0, v, (seen, follows))
    tokens = np.sort(np.minimum(rng.geometric(0.15, n) - 1, seen - 1)).astype(np.int32)
    ids = np.zeros((n, k), np.int32)
    for i, token in enumerate(tokens):
        own: list[int] = []
        while len(own) < k:
            some = favourites[token, min(rng.geometric(0.1) - 1, follows - 1)]
            new = int(some if rng.random() >= noise else rng.integers(0, v))
            own += [new] * (new not in own)
        ids[i] = own
    return tokens, ids


# -- ids and codes --------------------------------------------------------------------------------

any_id = st.integers(0, 2**31 - 1) | st.integers(0, 30)


@given(
    known=st.lists(any_id, max_size=40),
    tables=st.dictionaries(
        any_id, st.lists(st.integers(0, 39), max_size=12, unique=True), max_size=5
    ),
    tokens=st.lists(any_id, min_size=1, max_size=12),
    data=st.data(),
)
def test_any_ids_come_back(known, tables, tokens, data):
    """In a table, in the order only, in neither; after a token with a table, and without."""
    book = order_of(*count(ints(known)))
    u = len(book.order)
    places = {t: [p for p in e if p < u] for t, e in sorted(tables.items())}
    book = replace(
        book,
        tokens=ints(list(places)),
        sizes=ints([len(e) for e in places.values()]),
        entries=ints([p for e in places.values() for p in e]),
    )
    some = st.sampled_from(known) | any_id if known else any_id
    tokens = ints(
        sorted(t if data.draw(st.booleans()) or not tables else next(iter(tables)) for t in tokens)
    )
    k = data.draw(st.integers(1, 6))
    rows = [data.draw(st.lists(some, min_size=k, max_size=k, unique=True)) for _ in tokens]
    codes = round_trip(book, tokens, ints(rows))
    for row in codes:
        assert len(set(row.tolist())) == k  # different ids have different codes
    for token, row, row_codes in zip(tokens.tolist(), rows, codes.tolist(), strict=True):
        table = [int(book.order[p]) for p in places.get(token, [])]
        for i, code in zip(row, row_codes, strict=True):
            assert (code == table.index(i)) if i in table else (code >= len(table))


@pytest.mark.parametrize(
    ("ids_from", "vocab_size"),
    [(0, 2**31), (2**24 - 100, 2**24 + 100), (2**31 - 500, 2**31), (0, 300)],
)
def test_vocabularies_of_any_size(ids_from, vocab_size):
    """Up to 2^24 ids are looked up in an array, beyond by bisection."""
    rng = np.random.default_rng(0)
    pool = np.unique(rng.integers(ids_from, vocab_size, 2000))
    known = pool[::2]
    tokens = np.sort(rng.choice(pool, 300)).astype(np.int32)
    ids = distinct(rng, 300, 12, pool)
    ids[0, 0] = vocab_size - 1 if (vocab_size - 1) not in ids[0] else ids[0, 0]
    plain = order_of(*count(known.astype(np.int32)))
    assert (plain._inverse is None) == (int(known.max()) + 1 > codebook.DENSE_VOCAB)
    round_trip(plain, tokens, ids)
    round_trip(NO_ORDER, tokens, ids)
    tabled = train(tokens, distinct(rng, 300, 12, known), np.ones((300, 12), bool))
    assert len(tabled.tokens)
    round_trip(tabled, tokens, ids)


def test_both_ways_of_looking_up_give_the_same_codes(monkeypatch):
    rng = np.random.default_rng(1)
    tokens, ids = teacher(rng, 200, 6, 1000)
    book = train(tokens, ids, np.ones(ids.shape, bool))
    strange = distinct(rng, 200, 6, np.arange(3000))
    dense = round_trip(book, tokens, strange)
    monkeypatch.setattr(codebook, "DENSE_VOCAB", 0)
    again = replace(book)
    assert again._inverse is None
    np.testing.assert_array_equal(round_trip(again, tokens, strange), dense)


@pytest.mark.parametrize("scratch", [1, 700, 2**19])
def test_however_many_tables_are_looked_up_at_a_time(monkeypatch, scratch):
    rng = np.random.default_rng(2)
    tokens, ids = teacher(rng, 400, 8, 500)
    book = train(tokens, ids, np.ones(ids.shape, bool))
    expected = round_trip(book, tokens, ids)
    monkeypatch.setattr(codebook, "SCRATCH", scratch)
    np.testing.assert_array_equal(round_trip(book, tokens, ids), expected)
    everywhere = np.sort(np.concatenate([tokens, rng.integers(0, 500, 100)])).astype(np.int32)
    round_trip(book, everywhere, distinct(rng, 500, 8, np.arange(500)))


def test_no_positions_and_padding():
    book = train(ints([1, 2]), ints([[1, 2], [3, 4]]), np.ones((2, 2), bool))
    round_trip(book, ints([]), np.zeros((0, 3), np.int32))
    round_trip(book, ints([1]), np.zeros((1, 0), np.int32))
    round_trip(book, ints([1, 7]), ints([[5, 5, 5], [1, 1, 1]]))  # what fills a slot may be twice


def test_codes_that_stand_for_nothing_are_no_ids():
    """Of any vocabulary: also where 2^31 - 1 is an id."""
    for book in (NO_ORDER, order_of(ints([5, 7]), np.array([3, 1]))):
        u = len(book.order)
        tokens = ints([0, 0, 0])
        codes = np.array([u + 2**31 - 1, u + 2**31, 2**32 - 1], np.uint32)
        back = book.decode(codes, *book.offsets(tokens))
        assert back[0] == 2**31 - 1
        assert (back[1:] < 0).all()


def test_the_frequent_get_small_codes():
    ids, counts = count(ints([9] * 50 + [3] * 20 + [4] * 20 + [8] * 2 + [1]))
    assert ids.tolist() == [1, 3, 4, 8, 9]
    assert counts.tolist() == [1, 20, 20, 2, 50]
    book = order_of(ids, counts)
    assert book.order.tolist() == [9, 3, 4, 8, 1]
    assert book.classes.tolist() == [1, 2, 1, 1]
    assert round_trip(book, ints([0]), ints([[1, 9, 4, 3, 100]])).tolist() == [
        [4, 0, 2, 1, 5 + 100]
    ]


@pytest.mark.parametrize("ids", [[], [2**31 - 1], [0], [5, 2**30, 5], list(range(9)) * 2])
def test_count(ids):
    """By an array of counters, and by sorting where that would be too large."""
    found, counts = count(ints(ids))
    expected, expected_counts = np.unique(ints(ids), return_counts=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts, expected_counts)
    assert found.dtype == np.int32


# -- training -------------------------------------------------------------------------------------


def test_training_is_a_function_of_what_was_kept():
    tokens, ids = teacher(np.random.default_rng(3), 500, 8, 2000)
    kept = np.ones(ids.shape, bool)
    one, two = train(tokens, ids, kept), train(tokens.copy(), ids.copy(), kept.copy())
    assert one.to_bytes() == two.to_bytes()
    # nor of the order of slots or positions
    p = np.random.default_rng(4).permutation(len(tokens))
    assert train(tokens[p], ids[p][:, ::-1], kept).to_bytes() == one.to_bytes()


def test_what_is_not_kept_does_not_count():
    tokens, ids = teacher(np.random.default_rng(3), 300, 8, 2000)
    kept = np.random.default_rng(5).random(ids.shape) < 0.6
    kept[:, 0] = True
    other = np.where(kept, ids, 1999)
    assert train(tokens, ids, kept).to_bytes() == train(tokens, other, kept).to_bytes()


def test_sizes_of_tables():
    rng = np.random.default_rng(6)
    tokens, ids = teacher(rng, 600, 12, 5000)
    book = train(tokens, ids, np.ones(ids.shape, bool))
    seen, sights = np.unique(tokens, return_counts=True)
    np.testing.assert_array_equal(book.tokens, seen)
    most = np.minimum(training.LARGEST_TABLE, training.TABLE_PER_SIGHT * sights)
    assert (book.sizes <= most).all()
    assert (book.sizes > 0).all()
    assert book.sizes.max() <= codebook.TABLE_LIMIT
    ends = np.cumsum(book.sizes)
    for token, end, size in zip(book.tokens, ends, book.sizes, strict=True):
        table = book.entries[end - size : end]
        assert len(set(table.tolist())) == size
        found, times = np.unique(ids[tokens == token], return_counts=True)
        favourite = found[times.argmax()]
        if times.max() >= 10:
            assert favourite in book.order[table[:12]]


@pytest.mark.parametrize("limit", ["DICTIONARY_LIMIT", "ENTRY_LIMIT"])
def test_tables_shrink_until_a_reader_takes_them(monkeypatch, limit):
    tokens, ids = teacher(np.random.default_rng(7), 800, 8, 3000)
    kept = np.ones(ids.shape, bool)
    free = train(tokens, ids, kept)
    order_only = replace(free, tokens=ints([]), sizes=ints([]), entries=ints([]))
    if limit == "DICTIONARY_LIMIT":
        most = (len(free.to_bytes()) + len(order_only.to_bytes())) // 2
    else:
        most = max(len(free.entries) // 3, len(free.order))
    monkeypatch.setattr(codebook, limit, most)
    small = train(tokens, ids, kept)
    assert 0 < len(small.entries) < len(free.entries)
    assert len(small.to_bytes()) <= codebook.DICTIONARY_LIMIT
    assert len(small.entries) <= codebook.ENTRY_LIMIT
    assert same(Codebook.from_bytes(small.to_bytes(), vocab_size=3000, where="d"), small)
    round_trip(small, tokens, ids)


def test_no_tables_at_all_if_the_limit_asks_for_it(monkeypatch):
    tokens, ids = teacher(np.random.default_rng(7), 300, 8, 3000)
    kept = np.ones(ids.shape, bool)
    free = train(tokens, ids, kept)
    none = replace(free, sizes=np.zeros_like(free.sizes), entries=ints([]))
    monkeypatch.setattr(codebook, "DICTIONARY_LIMIT", len(none.to_bytes()) + 10)
    small = train(tokens, ids, kept)
    assert len(small.entries) < len(free.tokens)
    round_trip(small, tokens, ids)


@pytest.mark.parametrize("limit", ["DICTIONARY_LIMIT", "ENTRY_LIMIT"])
def test_a_limit_that_not_even_the_order_fits_ends(monkeypatch, limit):
    """It must not try for ever; without tables there is nothing left to leave out."""
    tokens, ids = teacher(np.random.default_rng(7), 300, 8, 3000)
    monkeypatch.setattr(codebook, limit, 400)
    book = train(tokens, ids, np.ones(ids.shape, bool))
    assert len(book.to_bytes()) <= codebook.DICTIONARY_LIMIT
    assert 0 < len(book.order) <= codebook.ENTRY_LIMIT
    assert same(Codebook.from_bytes(book.to_bytes(), vocab_size=3000, where="d"), book)
    round_trip(book, tokens, ids)


def test_nothing_to_train_on():
    for n in (0, 1):
        book = train(np.zeros(n, np.int32), np.zeros((n, 1), np.int32), np.zeros((n, 1), bool))
        assert len(book.order) == 0
        assert same(Codebook.from_bytes(book.to_bytes(), vocab_size=9, where="d"), book)
        round_trip(book, ints([0, 3]), ints([[1, 2], [3, 4]]))


def test_a_dictionary_makes_codes_small_where_ids_depend_on_tokens():
    """Trained on one half, used on the other; the same of the stream's bytes."""
    rng = np.random.default_rng(8)
    tokens, ids = teacher(rng, 6000, 8, 30000, noise=0)
    half = np.arange(len(tokens)) % 2 == 0
    book = train(tokens[half], ids[half], np.ones(ids[half].shape, bool))
    book = Codebook.from_bytes(book.to_bytes(), vocab_size=30000, where="d")
    own = order_of(*count(np.concatenate([ids[~half].ravel(), tokens[~half]])))
    with_tables = round_trip(book, tokens[~half], ids[~half])
    without = round_trip(own, tokens[~half], ids[~half])
    assert with_tables.mean() < without.mean() / 2  # of rare tokens little was seen
    assert np.median(with_tables) < np.median(without) / 5
    own_size = sum(len(s.data) for s in own.order_streams().values())
    size = lambda codes: len(pack(np.sort(codes, axis=1).ravel()).data)  # noqa: E731
    assert size(with_tables) < size(without) + own_size
    assert size(with_tables) < 0.8 * size(without)


# -- as bytes -------------------------------------------------------------------------------------


def same(a, b):
    names = ("order", "classes", "tokens", "sizes", "entries")
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names) and all(
        getattr(a, n).dtype == np.int32 for n in names
    )


@given(
    known=st.lists(any_id, max_size=60),
    tokens=st.lists(any_id, max_size=9, unique=True),
    data=st.data(),
)
def test_bytes_round_trip(known, tokens, data):
    book = order_of(*count(ints(known)))
    place = st.integers(0, max(len(book.order) - 1, 0))
    tables = [data.draw(st.lists(place, max_size=8 if known else 0, unique=True)) for _ in tokens]
    book = replace(
        book,
        tokens=ints(sorted(tokens)),
        sizes=ints([len(t) for t in tables]),
        entries=ints([p for t in tables for p in t]),
    )
    written = book.to_bytes()
    again = Codebook.from_bytes(written, vocab_size=2**31, where="d")
    assert same(again, book)
    assert again.sha256 == hashlib.sha256(written).hexdigest()
    assert again.to_bytes() == written
    order = Codebook.from_order_streams(book.order_streams(), vocab_size=2**31, where="d")
    assert np.array_equal(order.order, book.order)
    assert order.sha256 is None
    assert len(order.tokens) == 0


V = 400


@pytest.fixture(scope="module")
def good():
    tokens, ids = teacher(np.random.default_rng(9), 200, 5, V)
    return train(tokens, ids, np.ones(ids.shape, bool))


def altered(book, **streams):
    """The file with some streams put in place of its own; None: without it."""
    _, own = split(codebook.MAGIC, book.to_bytes(), where="d")
    own |= {
        n: s if s is None or isinstance(s, Stream) else pack(np.asarray(s, np.uint32))
        for n, s in streams.items()
    }
    return join(codebook.MAGIC, {}, {n: s for n, s in own.items() if s is not None})


def refused(data, vocab_size=V):
    with pytest.raises(IntegrityError, match=r"^d: ") as e:
        Codebook.from_bytes(data, vocab_size=vocab_size, where="d")
    return str(e.value)


def order_with(order, place, value):
    order = order.astype(np.int64).copy()
    order[place] = value
    return order


def steps_of(order, classes):
    starts = np.cumsum(classes) - classes
    steps = np.diff(order, prepend=0)
    steps[starts] = order[starts]
    return steps


def test_what_is_altered_below_is_good(good):
    assert same(Codebook.from_bytes(altered(good), vocab_size=V, where="d"), good)
    streams = {
        "order": steps_of(good.order.astype(np.int64), good.classes),
        "order_classes": good.classes,
        "tokens": np.diff(good.tokens, prepend=0),
        "sizes": good.sizes,
        "entries": good.entries,
    }
    assert altered(good, **streams) == good.to_bytes()
    more = join(
        codebook.MAGIC, {"more": 1}, {**split(codebook.MAGIC, good.to_bytes(), where="d")[1]}
    )
    assert same(Codebook.from_bytes(more, vocab_size=V, where="d"), good)


STREAM_NAMES = ["order", "order_classes", "tokens", "sizes", "entries"]


@pytest.mark.parametrize("name", STREAM_NAMES)
def test_a_stream_is_missing_short_long_or_no_stream(good, name):
    assert f"stream '{name}' is missing" in refused(altered(good, **{name: None}))
    _, own = split(codebook.MAGIC, good.to_bytes(), where="d")
    whole = own[name]
    for entries in (0, whole.entries - 1, whole.entries + 1, V + 1, 2**24, 2**24 + 1, 2**40, 2**62):
        refused(altered(good, **{name: Stream(entries=entries, data=whole.data)}))
    refused(altered(good, **{name: Stream(entries=whole.entries, data=whole.data[:-1])}))
    refused(altered(good, **{name: Stream(entries=whole.entries, data=b"")}))
    values = np.empty(whole.entries, np.uint32)
    codebook.unpack(whole, values, where="d")
    refused(altered(good, **{name: values[:-1]}))
    refused(altered(good, **{name: np.append(values, 1)}))
    refused(altered(good, **{name: []}))
    refused(altered(good, **{name: pack(values.astype(np.int64))}))
    most = values.copy()
    most[len(most) // 2] = 2**32 - 1
    refused(altered(good, **{name: most}))


def test_an_order_that_is_none(good):
    order, classes = good.order.astype(np.int64), good.classes.astype(np.int64)
    starts = np.cumsum(classes) - classes
    many = int(np.flatnonzero(classes > 1)[0])
    inside = int(starts[many]) + 1
    twice_in_class = steps_of(order, classes)
    twice_in_class[inside] = 0
    assert "twice" in refused(altered(good, order=twice_in_class))
    twice = steps_of(order_with(order, starts[-1], order[starts[0]]), classes)
    twice[starts[-1]] = order[starts[0]]
    if (twice >= 0).all():
        refused(altered(good, order=twice))
    beyond = steps_of(order, classes)
    beyond[starts[0]] = V
    assert f"outside 0..{V - 1}" in refused(altered(good, order=beyond))
    wrapping = steps_of(order, classes)
    wrapping[inside] = 2**32 - 1
    refused(altered(good, order=wrapping))
    for c in ([0, *classes], [*classes, 0], [*classes[:-1], classes[-1] + 1], [len(order) + 2**31]):
        assert "do not add up" in refused(altered(good, order_classes=c))
    around = classes.copy()
    around[0] += 2**31
    around[1] += 2**31
    assert "do not add up" in refused(altered(good, order_classes=around))  # modulo 2^32 they do
    assert "more than 128 entries" in refused(altered(good, order_classes=np.ones(129)))


def test_an_id_twice_in_two_classes():
    book = order_of(ints([1, 2, 3]), np.array([8, 2, 2]))
    assert book.classes.tolist() == [1, 2]
    assert "an id twice" in refused(altered(book, order=[3, 2, 1]))


def test_another_vocabulary(good):
    largest = int(max(good.order.max(), good.tokens.max()))
    assert same(Codebook.from_bytes(good.to_bytes(), vocab_size=largest + 1, where="d"), good)
    assert f"outside 0..{largest - 1}" in refused(good.to_bytes(), largest)
    refused(good.to_bytes(), 1)


def test_tokens_that_are_none(good):
    steps = np.diff(good.tokens.astype(np.int64), prepend=0)
    twice = steps.copy()
    twice[2] = 0
    assert "tokens outside" in refused(altered(good, tokens=twice))
    beyond = steps.copy()
    beyond[-1] = V
    assert "tokens outside" in refused(altered(good, tokens=beyond))
    around = steps.copy()
    around[1] += 2**31
    around[2] += 2**31
    assert "tokens outside" in refused(altered(good, tokens=around))


def test_tables_that_do_not_add_up(good):
    for place, by in ((0, 1), (0, -1), (-1, 1), (1, 2**31)):
        sizes = good.sizes.astype(np.int64)
        sizes[place] += by
        assert "do not add up" in refused(altered(good, sizes=sizes))
    around = good.sizes.astype(np.int64)
    around[:2] += 2**31
    assert "do not add up" in refused(altered(good, sizes=around))
    assert "do not add up" in refused(altered(good, entries=good.entries[:-1]))


def test_a_table_that_is_too_large():
    u = codebook.TABLE_LIMIT + 1
    book = order_of(np.arange(u, dtype=np.int32), np.ones(u, np.int64))
    for size in (u - 1, u):
        one = replace(
            book, tokens=ints([0]), sizes=ints([size]), entries=np.arange(size, dtype=np.int32)
        )
        if size == u:
            assert "a table of 32768 ids, at most 32767" in refused(one.to_bytes(), u)
        else:
            again = Codebook.from_bytes(one.to_bytes(), vocab_size=u, where="d")
            round_trip(again, ints([0]), np.arange(u, dtype=np.int32)[None])


def test_a_table_of_ids_that_have_no_place(good):
    entries = good.entries.astype(np.int64)
    for value in (len(good.order), 2**31, 2**32 - 1):
        entries[3] = value
        assert "no place in the order" in refused(altered(good, entries=entries))


def test_a_table_that_names_an_id_twice(good):
    """One of its two codes would never be written, and a position could then hold an id twice."""
    entries = good.entries.copy()
    entries[1] = entries[0]
    assert "names an id twice" in refused(altered(good, entries=entries))
    first = int(good.sizes[0])
    entries = good.entries.copy()
    entries[first] = good.entries[0]  # in another table it may be
    if good.entries[0] not in good.entries[first + 1 : first + int(good.sizes[1])]:
        Codebook.from_bytes(altered(good, entries=entries), vocab_size=V, where="d")


def test_files_that_are_no_dictionary(good, monkeypatch):
    data = good.to_bytes()
    assert "does not begin like" in refused(b"")
    assert "does not begin like" in refused(data.replace(b"dictionary 1", b"dictionary 2"))
    for end in range(0, len(data), 7):
        refused(data[:end])
    assert "malformed" in refused(data + b"\n")
    monkeypatch.setattr(codebook, "DICTIONARY_LIMIT", len(data) - 1)
    assert "more than the" in refused(data)


def test_an_index_that_lies(good):
    data = good.to_bytes()
    begin = len(codebook.MAGIC) + 1
    end = data.index(b"\n", begin)
    head = data[begin:end].decode()
    n = len(good.entries)
    for lie in (n - 1, n + 1, 2**40, -1):
        wrong = head.replace(f'["entries",{n},', f'["entries",{lie},')
        assert wrong != head
        refused(data[:begin] + wrong.encode() + data[end:])


def test_every_flipped_bit_is_refused_or_is_another_dictionary(good):
    """A manifest vouches for its sha256; without it the worst must be a refusal in our words."""
    data = good.to_bytes()
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(data))[:500]:
        bad = bytearray(data)
        bad[place] ^= 1 << int(rng.integers(8))
        try:
            book = Codebook.from_bytes(bytes(bad), vocab_size=V, where="d")
        except IntegrityError as e:
            assert str(e).startswith("d: ")  # noqa: PT017
            continue
        assert book.sha256 != hashlib.sha256(data).hexdigest()
        tokens = np.arange(0, V, 7, dtype=np.int32)
        ids = distinct(rng, len(tokens), 5, np.arange(V))
        round_trip(book, tokens, ids)
