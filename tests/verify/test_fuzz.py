r"""Fuzz: what holds for every text and every formula, on thousands of made-up ones; the same ones in every run.

A formula is made as a tree and written down from it, so that one tree has many spellings that are surely equal.
"""

from __future__ import annotations

import random
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algorist.verify.equal import at_sight, equal
from algorist.verify.extract import Extraction, answer_in, extract

QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
MANY = settings(max_examples=300, **QUIET)
SOME = settings(max_examples=150, **QUIET)

# Anything at all, lone surrogates and control characters included.
TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
LATEX = r"""
0 1 2 7 9 42 1,234 0.5 .5 x y e i n A B ( ) [ ] { } \{ \} + - * / ^ _ = < > | ! , . ; : ' $ $$ & % # ~ ` @ \frac
\frac12 \sqrt \sqrt[3] \sin \ln \log_2 \pi \infty \pm \cdot \times \le \ne \in \cup \to \ldots \% \left \right \left(
\right) \text{ \text{cm} \mathrm{ \begin{pmatrix} \end{pmatrix} \\ \sum \int_0^1 \binom \boxed{ \boxed{1} \( \) \[ \]
\, \! \circ ^\circ \over \overline{ \lfloor \mathbb{R} \begin \end \x \ or and
"""
WORDS = [
    "answer is ",
    "Answer: ",
    "\n#### ",
    "<think>",
    "</think>",
    "<|im_end|>",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "\u2212",
]
SOUP = st.lists(st.sampled_from(LATEX.split() + WORDS), max_size=14).map("".join)
ANYTHING = st.one_of(TEXT, SOUP)

Tree = tuple  # (kind, parts ...), as `spell` reads it
WHOLE = st.integers(-20, 20).map(lambda n: ("number", n))
NUMBERS = st.one_of(WHOLE, st.tuples(st.just("ratio"), st.integers(-20, 20), st.integers(2, 12)))
CONSTANTS = st.one_of(
    NUMBERS,
    st.sampled_from([("word", r"\pi"), ("word", "e")]),
    st.tuples(st.just("root"), st.sampled_from([2, 3, 5, 6, 7, 12])),
)


def combined(parts: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    """One operation more. Nothing is divided by what could be zero, and no root or logarithm taken of it."""
    return st.one_of(
        st.tuples(st.just("sum"), parts, parts),
        st.tuples(st.just("product"), parts, parts),
        st.tuples(st.just("difference"), parts, parts),
        st.tuples(st.just("quotient"), parts, st.integers(2, 9)),
        st.tuples(st.just("power"), parts, st.integers(2, 3)),
        st.tuples(st.just("function"), st.sampled_from([r"\sin", r"\cos"]), parts),
    )


CONSTANT = st.recursive(CONSTANTS, combined, max_leaves=4)
LEAVES = st.one_of(CONSTANTS, st.sampled_from([("word", "x"), ("word", "y")]))
# A variable stands in each, so that no formula is a number in disguise: there the verdict may depend on the direction.
FORMULA = st.recursive(LEAVES, combined, max_leaves=6).map(lambda tree: ("sum", ("word", "z"), tree))


def spell(tree: Tree, style: random.Random | None = None) -> str:
    """The formula as LaTeX: always the same way, or, given a style, in one of its many ways."""
    kind, *parts = tree
    if kind == "number":
        return str(parts[0])
    if kind == "word":
        return str(parts[0])
    if kind == "root":
        return rf"\sqrt{{{parts[0]}}}"
    if kind == "ratio":
        return fraction("-" if parts[0] < 0 else "", str(abs(parts[0])), str(parts[1]), style)
    if kind == "function":
        return parts[0] + bracketed(spell(parts[1], style), style)
    inner = [spell(part, style) if isinstance(part, tuple) else str(part) for part in parts]
    if kind == "quotient":
        return fraction("", *inner, style)
    if kind == "power":
        return f"{bracketed(inner[0], style)}^{{{inner[1]}}}"
    if kind == "difference":
        return f"{inner[0]}{space(style)}-{space(style)}{bracketed(inner[1], style)}"
    if style and style.random() < 0.5:
        inner.reverse()
    if kind == "sum":
        return f"{bracketed(inner[0], style)}{space(style)}+{space(style)}{bracketed(inner[1], style)}"
    dot = r" \cdot " if style is None else style.choice(["", " ", r"\cdot ", r" \times "])
    return bracketed(inner[0], style) + dot + bracketed(inner[1], style)


def space(style: random.Random | None) -> str:
    """Space that means nothing."""
    return style.choice(["", " ", "  ", r"\,", r"\ ", "\n"]) if style else ""


def bracketed(text: str, style: random.Random | None) -> str:
    """In brackets, plain or growing."""
    if style and style.random() < 0.5:
        return rf"\left({space(style)}{text}{space(style)}\right)"
    return f"({text})"


def fraction(sign: str, above: str, below: str, style: random.Random | None) -> str:
    """A fraction, small or large, its sign before it or above."""
    if style is None:
        return rf"{sign}\frac{{{above}}}{{{below}}}"
    word = style.choice([r"\frac", r"\dfrac", r"\tfrac", r"\cfrac"])
    before = style.random() < 0.5
    return rf"{sign if before else ''}{word}{{{'' if before else sign}{above}}}{{{below}}}"


COLLECTION = st.sampled_from(
    [r"\left({},{}\right)", r"\left\{{{},{}\right\}}", r"\begin{{pmatrix}}{}\\{}\end{{pmatrix}}", "w={}+{}"]
)
WRAPPINGS = ["${}$", r"\({}\)", r"\[{}\]", "$${}$$", " {} ", "{}.", r"\displaystyle {}", r"\boxed{{{}}}"]
STYLE = st.integers(0, 10_000).map(random.Random)


@MANY
@given(ANYTHING, ANYTHING)
def test_no_text_is_an_exception(gold: str, candidate: str) -> None:
    for outcome in (equal(gold, candidate), equal(candidate, gold), at_sight(gold, candidate)):
        assert outcome is None or (outcome[0] in (True, False, None) and outcome[1])


@MANY
@given(ANYTHING, ANYTHING)
def test_everything_can_be_read(before: str, answer: str) -> None:
    marked = (rf"\boxed{{{answer}}}", f"The answer is {answer}", f"\n#### {answer}")
    for text in (before, *(before + ending for ending in marked)):
        for reader in (extract, answer_in):
            found = reader(text)
            assert isinstance(found, Extraction)
            assert found.found
            nested = text.count("boxed{") > 1  # then the inner box is taken out of what the outer one holds
            assert nested or all(part in text for part in found.answer.split(", "))  # several boxes may be one answer


@MANY
@given(ANYTHING)
def test_no_text_differs_from_itself(text: str) -> None:
    assert equal(text, text)[0] is not False


@MANY
@given(st.one_of(FORMULA, CONSTANT))
def test_every_formula_equals_itself(tree: Tree) -> None:
    assert equal(spell(tree), spell(tree)) == (True, "equal")


@SOME
@given(FORMULA, STYLE)
def test_spelling_does_not_matter(tree: Tree, style: random.Random) -> None:
    assert equal(spell(tree), spell(tree, style))[0] is True


@SOME
@given(FORMULA, FORMULA, COLLECTION, STYLE)
def test_spelling_does_not_matter_in_collections(first: Tree, second: Tree, form: str, style: random.Random) -> None:
    gold, other = form.format(spell(first), spell(second)), form.format(spell(first, style), spell(second, style))
    assert equal(gold, other)[0] is True


@SOME
@given(FORMULA, st.sampled_from(WRAPPINGS))
def test_wrapping_does_not_matter(tree: Tree, wrapping: str) -> None:
    text = spell(tree)
    assert equal(text, wrapping.format(text))[0] is True
    assert equal(wrapping.format(text), text)[0] is True


@SOME
@given(FORMULA, FORMULA)
def test_direction_does_not_matter(one: Tree, other: Tree) -> None:
    assert equal(spell(one), spell(other))[0] is equal(spell(other), spell(one))[0]


@SOME
@given(NUMBERS, NUMBERS)
def test_numbers_are_compared_exactly_in_both_directions(one: Tree, other: Tree) -> None:
    same = Fraction(*one[1:]) == Fraction(*other[1:])
    assert equal(spell(one), spell(other))[0] is equal(spell(other), spell(one))[0] is same


@SOME
@given(st.one_of(FORMULA, CONSTANT), STYLE)
def test_one_more_is_not_equal(tree: Tree, style: random.Random) -> None:
    more = ("sum", tree, ("number", 1))
    assert equal(spell(tree), spell(more, style))[0] is not True
    assert equal(spell(more), spell(tree, style))[0] is not True


@MANY
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**12))
def test_a_seventh_more_is_not_equal(above: int, below: int) -> None:
    one, more = Fraction(above, below), Fraction(above, below) + Fraction(1, 7)
    gold, other = rf"\frac{{{one.numerator}}}{{{one.denominator}}}", rf"\frac{{{more.numerator}}}{{{more.denominator}}}"
    assert equal(gold, other)[0] is False
    assert equal(gold, rf"{gold}+\frac{{1}}{{7}}")[0] is not True
    assert equal(gold, f"{one.numerator}/{one.denominator}") == (True, "equal")


@SOME
@given(FORMULA, FORMULA, STYLE)
def test_a_tree_with_one_branch_changed_is_not_equal(tree: Tree, branch: Tree, style: random.Random) -> None:
    one = ("product", ("sum", ("word", "t"), tree), branch)
    other = ("product", ("sum", ("word", "t"), ("sum", tree, ("ratio", 1, 7))), branch)
    assert equal(spell(one), spell(other, style))[0] is not True
