"""Words: the vocabulary of answers. Functions, units, numbers in words, and what says the same in other words."""

from __future__ import annotations

import re
from fractions import Fraction


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CIRCULAR = _words("sin cos tan cot sec csc")
_HYPERBOLIC = _words("sinh cosh tanh coth sech csch")
FUNCTIONS = {
    **{name: name for name in (*_CIRCULAR, *_HYPERBOLIC)},
    **{f"{arc}{name}": f"arc{name}" for name in (*_CIRCULAR, *_HYPERBOLIC) for arc in ("arc", "a", "ar")},
    **{
        name: name for name in _words("log ln lg lb exp gcd lcm max min det sqrt cbrt abs floor ceil arg cis sgn binom")
    },
    **{"tg": "tan", "ctg": "cot", "cotg": "cot", "arctg": "arctan", "arcctg": "arccot", "cosec": "csc", "sign": "sgn"},
    **{"Re": "re", "Im": "im", "binomial": "binom", "ceiling": "ceil", "factorial": "factorial", "hcf": "gcd"},
}
NAMED = {"pi": "pi", "Pi": "pi", "infinity": "infinity", "inf": "infinity", "infty": "infinity", "oo": "infinity"}
GREEK = _words(
    """alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega ell hbar
    Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"""
)
KNOWN = frozenset(("mod", *FUNCTIONS, *NAMED, *(name for name in GREEK if len(name) > 2)))
# Of at most four letters; longer ones are words anyway.
SHORT_WORDS = _words(
    """yes no not odd even all none are is of for any the and or if nor per red blue both each only when true more less
    than then zero one two three four five six ten half day mon tue wed thu fri sat sun jan feb mar apr may jun jul aug
    sep oct nov dec noon left same east west und oder in to pm am at by as on it be has with from over"""
)
CONNECTORS = _words("and or und oder et ou")
CONDITIONS = _words("for where if when with such that")
# Words before a value that say nothing about it.
NOISE = _words(
    """about approximately approx around roughly exactly the is are equals equal to a an of answer value values total
    its be only just solution solutions by final"""
)

# What a unit measures, how many of the first unit of that kind it is, and its names.
_UNIT_NAMES = """
length  1            m meter meters metre metres
length  0.01         cm centimeter centimeters centimetre centimetres
length  0.001        mm millimeter millimeters millimetre millimetres
length  0.1          dm decimeter decimeters
length  1000         km kilometer kilometers kilometre kilometres
length  0.0254       in inch inches
length  0.3048       ft foot feet
length  0.9144       yd yard yards
length  1609.344     mi mile miles
mass    1            kg kilogram kilograms kilo kilos
mass    0.001        g gram grams
mass    0.000001     mg milligram milligrams
mass    1000         t ton tons tonne tonnes
mass    0.45359237   lb lbs pound pounds
time    1            s sec secs second seconds
time    60           min mins minute minutes
time    3600         h hr hrs hour hours
time    86400        day days
time    604800       week weeks
time    2629800      month months
time    31557600     year years
money   1            dollar dollars usd buck bucks
money   0.01         cent cents penny pennies
volume  1            l liter liters litre litres
volume  0.001        ml milliliter milliliters
volume  3.785411784  gallon gallons
volume  0.946352946  quart quarts
volume  0.473176473  pint pints
angle   1            degree degrees deg
data    1            byte bytes
data    0.125        bit bits
"""
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(size))
    for kind, size, *names in (line.split() for line in _UNIT_NAMES.strip().splitlines())
    for name in names
}
_MEASURES = _words(
    "dollar euro yuan rupee yen peso unit square cubic hz kwh joule newton watt volt rpm mol ounce oz cup radian rad"
)
OTHER_UNITS = _words(
    """euro euros yuan rupees yen pesos pct percent percentage radian radians rad rads unit units sq square cubic people
    person students apples times ways points hz kwh joules newtons watts volts rpm mol pieces items books cm2 cm3 m2 m3
    km2 ounce ounces oz cup cups mph kmh kph"""
)


def unit(words: str) -> tuple[str, Fraction] | None:
    r"""What a unit measures and its size in the first unit of that kind: "cm^2" → ("length^2", 1/10000).

    None for words that are no unit we can convert, such as "apples" or "yuan"; those are never told apart.
    """
    words = re.sub(r"\b(?:sq|square)\.? (\w+)", r"\1^2", re.sub(r"\bcubic (\w+)", r"\1^3", words.lower()))
    words = re.sub(r"(\w) (\w+)\^-1\b", r"\1/\2", words)
    words = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}.get(words, words)
    words = re.sub(r"\bper\b", "/", words).replace(" ", "").rstrip(".")
    kinds, size = [], Fraction(1)
    for place, part in enumerate(words.split("/")):
        match = re.fullmatch(r"([a-z]+)(?:\^?([23]))?", part)
        if match is None or match[1] not in _UNITS:
            return None
        kind, factor = _UNITS[match[1]]
        power = int(match[2] or 1)
        kinds.append(f"{kind}^{power}")
        size = size * factor**power if not place else size / factor**power
    return "/".join(kinds), size


def measure(words: str) -> str:
    """What a unit that cannot be converted is called, in one spelling; "" for what is no measure, such as apples."""
    words = re.sub(r"\b(?:sq|square)\.? ", "square ", words.lower().strip("."))
    known = unit(words)
    if known:
        return known[0]
    names = [word.rstrip("s") for word in re.findall("[a-z]+", words)]
    return " ".join(names) if names and all(name in _MEASURES for name in names) else ""


def is_unit(word: str) -> bool:
    """Whether a word of letters, on its own after a number, names a unit."""
    return word.lower() in _UNITS or word.lower() in OTHER_UNITS


_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: value for value, word in enumerate(_ONES.split())}
_VALUES |= {word: 10 * place for place, word in enumerate(_TENS.split(), 2)}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_PARTS |= {
    part: size
    for size, name in enumerate("third fourth fifth sixth seventh eighth ninth tenth".split(), 3)  # noqa: SIM905
    for part in (name, f"{name}s")
}


def spelled_number(words: str) -> Fraction | None:
    """The number that words spell: "twenty-one", "three hundred and five", "two thirds", "one half"; else None."""
    parts = [part for part in re.split(r"[\s-]+", words.lower().strip()) if part and part != "and"]
    if not parts or len(parts) > 16:
        return None
    if parts[-1] in _PARTS and len(parts) >= 2:
        above = 1 if parts[:-1] == ["a"] else _whole(parts[:-1])
        return None if above is None else Fraction(above, _PARTS[parts[-1]])
    whole = _whole(parts)
    return None if whole is None else Fraction(whole)


def _whole(parts: list[str]) -> int | None:
    total = current = 0
    for part in parts:
        if part in _VALUES:
            if current % 10 and _VALUES[part] < 20 or (current % 100 and _VALUES[part] >= 20):
                return None  # "one two" is no number
            current += _VALUES[part]
        elif part == "hundred" and 0 < current < 100:
            current *= 100
        elif part in SCALES and SCALES[part] >= 1_000 and current:
            total, current = total + current * SCALES[part], 0
        else:
            return None
    return total + current


# What says the same in other words; the first of a line stands for all.
_SYNONYMS = r"""
nothing: no solution, no solutions, no real solution, no real solutions, none, empty set, the empty set, no roots, {},
    no such number, no such numbers, there is no solution, there are no solutions, no real roots, no solution exists,
    no such integers, no such integer, no integer solutions, no such values, nosolution, \emptyset, \varnothing, \{\}
every real: all real numbers, all reals, all real, real numbers, any real number, every real number, all real x,
    \mathbb{r}, (-\infty,\infty), (-\infty, \infty)
without end: infinitely many, infinitely many solutions, infinite, infinity, \infty, +\infty, infinite solutions
undefined: does not exist, dne, not defined, doesn't exist, it does not exist, limit does not exist
yes: true, correct
no: false, incorrect
impossible: not possible, it is impossible, cannot be done
"""
_SAME = {
    said.strip(): line.split(":")[0]
    for line in re.sub(r"\n\s+", " ", _SYNONYMS.strip()).splitlines()
    for said in re.split(r",(?! ?\\infty\))", line.split(":", 1)[1])
}
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|mathrm|mathbf|mathit|mbox|boxed|operatorname)\s*\{([^{}]*)\}")
_ARTICLE = re.compile(r"^(?:the|an?) (?=[a-z]{3})")
_FILLER = re.compile(r"\b(?:the|a|an|answer|is|it|there|are|that|option|choice)\b")


def words_of(text: str) -> str:
    r"""A text as words are compared: without case, `\text{}`, punctuation at the ends and double spaces."""
    if "\\" in text:
        text = _WRAPPED.sub(r" \1 ", text.replace("\\left", "").replace("\\right", "")).replace("\\ ", " ")
    text = re.sub(r"\s+", " ", text.replace("$", " ").replace("**", " ")).strip(" .,;:!\"'`").lower()
    text = _ARTICLE.sub("", text)
    return _SAME.get(text) or _SAME.get(_FILLER.sub("", text).strip()) or text
