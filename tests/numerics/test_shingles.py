import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorist.numerics import overlap, runs, shingles, words
from oracles import overlap as slow_overlap
from oracles import runs as slow_runs
from oracles import shingles as slow
from oracles import words as slow_words

TEX = r"""
    \frac \dfrac \left( \right) \pi \text{ $ $$ \[ \] \\ \, \! \; { } \times \le \begin{array}{cl} \end{array} \begin{
"""
SIGNS = "x² x₁ 10²³ naïve É ﬁ ½ 日本語 Ω π ≤ × − + - 3.5 1,000 the of x y 12 _ ^ \u00ad e\u0301 𝑥 😀 \ud800"
SOME = st.one_of(
    st.sampled_from([*TEX.split(), *SIGNS.split(), " ", "\t", "\n"]),
    st.text(string.ascii_letters + string.digits + " $\\{}+-^_.,", max_size=6),
    st.text(max_size=3),
)


@given(st.lists(SOME, max_size=12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_words_against_the_oracle(parts, operators):
    text = "".join(parts).encode("utf-8", "replace").decode()
    assert words.spell(text, operators) == slow_words.spell(text, operators)


@pytest.mark.parametrize("plane", [0, 1, 2, 3, 14])
def test_every_character_against_the_oracle(plane):
    chars = [chr(code) for code in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= code < 0xE000]
    for low in range(0, len(chars), 1024):
        text = " ".join(f"a{char}b" for char in chars[low : low + 1024] if char != "\\")
        assert words.spell(text, True) == slow_words.spell(text, True)


@given(st.lists(st.lists(SOME, max_size=8).map(" ".join), max_size=6))
@settings(max_examples=100, deadline=None)
def test_hashes_are_equal_where_the_letters_are(texts):
    for rows, operators in ((words.words(texts), False), (words.symbols(texts)[0], True)):
        named = {}
        for place, text in enumerate(texts):
            spelled = words.spell(text, operators)
            assert len(spelled) == len(rows[place])
            for word, hashed in zip(spelled, rows[place].tolist(), strict=True):
                assert named.setdefault(word, hashed) == hashed
        assert len(set(named.values())) == len(named)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"Find $\frac{1}{2} X$.", r"find \(\dfrac12x\)"),
        (r"\frac ab", r"\tfrac{a}{b}"),
        (r"$\left( 3 \right)$", "(3)"),
        (r"$x^2 + 1$", "x² + 1"),
        (r"$x_{12}$", "x₁₂"),
        (r"$\text{ if } x$", "if  X"),
        (r"1{,}000 and 1,\!000", "1,000 and 1,000"),
        ("Éa naïve", "e\u0301a naive"),
        (r"$\theta$", "θ"),
        ("ＡＢ１２", "ab12"),
        (r"$$\begin{array}{c} 1 \\ 2 \end{array}$$", "c 1 2"),
    ],
)
def test_two_writings_of_the_same(one, other):
    assert words.spell(one) == words.spell(other) and words.spell(one)
    assert words.words([one])[0].tolist() == words.words([other])[0].tolist()


def test_operators_count_only_where_they_are_asked_for():
    assert words.spell("3+4", True) != words.spell("3*4", True) and words.spell("3+4") == words.spell("3*4")
    assert words.spell(r"3\cdot4", True) == words.spell("3 × 4", True) == ["3", "*", "4"]
    assert words.spell(r"a \le b", True) == words.spell("a≤b", True)


def test_the_numbers_of_a_text_are_one_hash_whatever_their_order():
    _, (one, other, third, none) = words.symbols(["3 cats, 12 dogs", "x12 of 3", "3 1 2", "no"])
    assert one == other and one != third and none == 0


@given(st.lists(SOME, max_size=6).map(" ".join), st.lists(SOME, max_size=6).map(" ".join))
@settings(max_examples=100, deadline=None)
def test_numbers_agree_as_the_oracle_says(one, other):
    _, numbers = words.symbols([one, other])
    _, (left, right) = slow_words.symbols([one.encode("utf-8", "replace").decode() for one in (one, other)])
    assert (numbers[0] == numbers[1]) == (left == right)


def test_mix_is_splitmix():
    for value in (0, 1, 2**63, 2**64 - 1):
        assert int(shingles.mix(np.uint64(value))) == slow.mix(value)


def test_an_open_environment_swallows_nothing():
    assert words.spell(r"\begin{array the rest stays") == ["the", "rest", "stays"]


ROWS = st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=6)


@given(ROWS, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_grams_and_sets_against_the_oracle(rows, length):
    found = shingles.grams(shingles.rows(rows), length)
    named = {}
    for place, row in enumerate(rows):
        expected = slow.grams(row, length)
        assert len(found[place]) == len(expected)
        for gram, hashed in zip(expected, found[place].tolist(), strict=True):
            assert named.setdefault(gram, hashed) == hashed
    assert len(set(named.values())) == len(named)
    unique = shingles.sets(shingles.rows(rows), length)
    assert [set(unique[place].tolist()) for place in range(len(rows))] == [
        {named[gram] for gram in slow.grams(row, length)} for row in rows
    ]
    assert all((np.diff(unique[place].astype(float)) > 0).all() for place in range(len(rows)))


def test_a_gram_knows_the_order_of_its_numbers_and_zero_from_nothing():
    rows = shingles.rows([[1, 2], [2, 1], [0, 1], [1]])
    assert len(set(shingles.grams(rows, 2).values.tolist())) == 4


@given(ROWS, ROWS, st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_no_shared_run_is_missed_and_none_made_up(sought, rows, length):
    index = runs.sought(shingles.rows(sought, np.uint64), length)
    expected = slow_runs.shared((sought, length), rows)
    found = runs.shared(index, shingles.rows(rows)).tolist()
    assert sorted(found) == sorted(expected)
    firsts = runs.shared(index, shingles.rows(rows), first=True).tolist()
    assert [row for row, *_ in firsts] == sorted({row for row, *_ in expected})
    assert all(one in expected for one in firsts)


def test_runs_over_a_large_index_of_large_numbers():
    draw = np.random.default_rng(3)
    sought = [draw.integers(0, 2**63, 40) for _ in range(2000)]
    rows = [draw.integers(0, 2**63, 500) for _ in range(50)]
    for place in range(0, 50, 2):
        rows[place][100 + place : 113 + place] = sought[place][7:20]
        rows[place + 1][100:112] = sought[place][7:19]
    found = runs.shared(runs.sought(shingles.rows(sought, np.uint64), 13), shingles.rows(rows, np.int64))
    assert found.tolist() == [[place, 100 + place, place, 7, 13] for place in range(0, 50, 2)]


@given(ROWS, ROWS, st.sampled_from([0.3, 0.5, 1.0]), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_overlaps_against_sets(known, rows, near, least):
    expected = slow_overlap.overlaps(slow_overlap.postings(known), rows, near, least)
    index = overlap.postings(shingles.rows([sorted(set(row)) for row in known], np.uint64))
    found = overlap.overlaps(index, shingles.rows([sorted(set(row)) for row in rows], np.uint64), near, least)
    assert found.tolist() == expected
