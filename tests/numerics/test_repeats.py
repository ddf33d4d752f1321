"""Words and repetitions against twins that compare whole words; time that grows no faster than the text."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from algorist.numerics.repeats import LONGEST_WORD, covered, stretches, times_before, words
from oracles import repeats as twins

# Few letters, so that words and blocks repeat; letters of each kind, and what is hard to write in UTF-8.
TEXTS = st.text(alphabet='aB1 .\\\n\téЖไ因ß—≤😀\udc80"', max_size=120)
SEQUENCES = st.lists(st.integers(0, 2), max_size=60)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_words_are_those_of_the_twin(text: str) -> None:
    found, expected = words(text), twins.words(text)
    assert found.starts.tolist() == [word[1] for word in expected]
    assert found.ends.tolist() == [word[2] for word in expected]
    assert found.prose.tolist() == [word[3] for word in expected]
    assert found.numbers.tolist() == [word[4] for word in expected]
    names: dict[int, bytes] = {}
    for value, word in zip(found.hashes.tolist(), expected, strict=True):
        assert names.setdefault(value, word[0]) == word[0]
    assert len(names) == len({word[0] for word in expected})


@settings(deadline=None, max_examples=300)
@given(SEQUENCES, st.integers(1, 5), st.integers(1, 3))
def test_repeats_are_those_of_the_twin(values: list[int], ngram: int, least: int) -> None:
    times = times_before(np.array(values, np.uint64), ngram)
    assert times.tolist() == twins.times_before(values, ngram)
    assert covered(times, ngram, least).tolist() == twins.covered(times.tolist(), ngram, least)


@settings(deadline=None, max_examples=300)
@given(SEQUENCES, st.data())
def test_stretches_are_those_of_the_twin(values: list[int], data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(values)))
    assert stretches(np.array(values, np.uint64), end).tolist() == twins.stretches(values, end)


def test_a_block_of_thousands_of_words_is_found() -> None:
    block = np.random.default_rng(1).integers(0, 2**63, 3_000).astype(np.uint64)
    text = np.concatenate([block[:500] + np.uint64(1), np.tile(block, 3), block[:10]])
    lengths = stretches(text, len(text))
    assert lengths[3_000] == 9_010
    assert lengths[:3_000].max() < 3_000  # nothing shorter repeats
    assert (times_before(text, 8) > 0).sum() == 6_010 - 7  # the first that is said again ends 8 words into a copy


def test_digits_without_end_have_a_period() -> None:
    found = words("142857" * 100)
    assert (found.ends - found.starts).max() == LONGEST_WORD
    assert stretches(found.hashes, len(found.hashes) - 1)[3] == len(found.hashes) - 1  # 48 digits are three words


def test_time_is_linear_in_hostile_texts() -> None:
    for unit in ("a", "ab ", "a a b ", "\\", " ", "因", "x" * 15 + " "):
        spent = []
        for size in (200_000, 1_600_000):
            text = unit * (size // len(unit))
            before = time.process_time()
            found = words(text)
            covered(times_before(found.hashes, 20), 20, 2)
            stretches(found.hashes, len(found.hashes))
            spent.append(time.process_time() - before)
        assert spent[1] < 2.0 and spent[1] < 40 * max(spent[0], 0.005), (unit, spent)
