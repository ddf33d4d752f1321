import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorist.numerics import minhash, shingles
from oracles import minhash as slow
from oracles import shingles as sets_of


def planted(size: int, similarity: float, pairs: int, seed: int = 0) -> tuple[list[list[int]], float]:
    """Pairs of sequences of different numbers that share so many of them; the similarity they really have."""
    draw = np.random.default_rng(seed)
    other = round(size * (1 - similarity) / (1 + similarity))
    rows = []
    for _ in range(pairs):
        numbers = [*dict.fromkeys(draw.integers(0, 2**31 - 1, size + other + 9).tolist())][: size + other]
        rows += [numbers[:size], numbers[other:]]
    return rows, (size - other) / (size + other)


@pytest.mark.parametrize("size", [3, 12, 40, 130, 3000])
def test_the_estimate_is_unbiased_for_short_and_long_rows(size):
    rows, exact = planted(size, 0.6, 120)
    signed = minhash.signatures(shingles.rows(rows), 1)
    found = np.array([minhash.estimate(signed[at], signed[at + 1]) for at in range(0, len(rows), 2)])
    error = np.sqrt(exact * (1 - exact) / 128)
    assert abs(found.mean() - exact) < 4 * error / np.sqrt(len(found))
    assert np.abs(found - exact).max() < 5 * error


def test_as_good_as_one_permutation_a_bin():
    rows, exact = planted(30, 0.5, 40)
    signed = minhash.signatures(shingles.rows(rows), 1, 64)
    classic = slow.signatures(rows, 1, 64)
    ours, theirs = [], []
    for at in range(0, len(rows), 2):
        ours.append(minhash.estimate(signed[at], signed[at + 1]) - exact)
        theirs.append(slow.estimate(classic[at], classic[at + 1]) - exact)
    assert np.std(ours) < 1.3 * np.std(theirs)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_signature_depends_on_the_set_alone(row, length, seed):
    grams = list(dict.fromkeys(sets_of.grams(row, length)))
    order = np.random.default_rng(seed).permutation(len(grams))
    again = [[*grams[at], 9] for at in order]  # each gram once in another order, apart from each other
    one, twice = minhash.signatures(shingles.rows([row, row + row]), length)
    assert sets_of.jaccard(row, row + row, length) != 1 or np.array_equal(one, twice)
    assert len(again) == len(grams) and not (one == 2**32 - 1).all()


def test_empty_rows_are_alike_and_like_no_other():
    signed = minhash.signatures(shingles.rows([[], [], [1]]), 5)
    assert minhash.estimate(signed[0], signed[1]) == 1 and minhash.estimate(signed[0], signed[2]) == 0


@pytest.mark.parametrize("near", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_the_layout_keeps_its_word(near):
    assert minhash.layout(near) == slow.layout(near, minhash.BINS, minhash.RECALL)
    bands, wide = minhash.layout(near)
    assert bands * wide <= minhash.BINS and slow.meeting(near, bands, wide) >= minhash.RECALL


def test_bands_are_equal_where_their_bins_are():
    signed = np.random.default_rng(0).integers(0, 2, (12, 8)).astype(np.uint32)
    keys, exact = minhash.bands(signed, (3, 2)), slow.bands(signed.tolist(), (3, 2))
    for band in range(3):
        for one in range(12):
            for other in range(12):
                assert (keys[band, one] == keys[band, other]) == (exact[band][one] == exact[band][other])


@pytest.mark.parametrize("size", [15, 60, 2000])
def test_pairs_at_the_limit_meet_in_a_band(size):
    rows, exact = planted(size, 0.8, 400)
    assert exact >= 0.75
    keys = minhash.bands(minhash.signatures(shingles.rows(rows), 1), minhash.layout(0.8))
    met = (keys[:, ::2] == keys[:, 1::2]).any(axis=0)
    assert met.mean() >= 0.97
    strangers = (keys[:, :-2:2] == keys[:, 2::2]).any(axis=0)
    assert not strangers.any()


@given(st.lists(st.integers(0, 5), max_size=30))
def test_buckets_are_the_places_of_equal_keys(keys):
    found = minhash.buckets(np.array(keys, np.uint64))
    assert [found[at].tolist() for at in range(len(found))] == slow.buckets(keys)


@given(st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=2, max_size=8), st.sampled_from([0.4, 0.7, 1.0]))
@settings(max_examples=80, deadline=None)
def test_link_against_all_with_all(rows, near):
    of = shingles.sets(shingles.rows(rows), 1)
    everything = minhash.buckets(np.zeros(len(rows), np.uint64))
    pairs = slow.near_pairs(rows, 1, near)
    for one, other in [(0, 1), *pairs]:
        assert minhash.jaccard(of[one], of[other]) == sets_of.jaccard(rows[one], rows[other], 1)
    parents = np.arange(len(rows))
    left, skipped = minhash.link(everything, of, near, np.zeros(len(rows), np.uint64), parents, 100)
    expected = slow.link(rows, near)
    assert [minhash.root(parents, at) for at in range(len(rows))] == expected
    assert not len(left) and skipped == 0
    alone = np.arange(len(rows))
    left, _ = minhash.link(everything, of, near, np.arange(len(rows), dtype=np.uint64), alone, 100)
    assert {tuple(pair) for pair in left.tolist()} == pairs and alone.tolist() == list(range(len(rows)))


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_neighbours_are_marked(rows):
    beside = np.zeros(len(rows), np.bool_)
    of = shingles.sets(shingles.rows(rows), 1)
    minhash.neighbours(minhash.buckets(np.zeros(len(rows), np.uint64)), of, 0.5, beside)
    assert beside.tolist() == slow.neighbours(rows, 0.5)


def test_a_window_counts_what_it_leaves_out():
    of = shingles.sets(shingles.rows([[1], [2], [3], [1]]), 1)
    parents = np.arange(4)
    args = (minhash.buckets(np.zeros(4, np.uint64)), of, 0.8, np.zeros(4, np.uint64), parents)
    assert minhash.link(*args, 2)[1] == 1 and parents.tolist() == [0, 1, 2, 3]
    assert minhash.link(*args, 3)[1] == 0 and parents.tolist() == [0, 1, 2, 0]
