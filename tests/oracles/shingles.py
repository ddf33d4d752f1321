"""Words, n-grams, sets and shared runs, character by character and by nested loops."""

import re
import unicodedata

DROPPED = """left right big bigl bigr bigg biggl biggr middle displaystyle textstyle scriptstyle limits nolimits text textbf
textit textrm texttt textsf textnormal mathrm mathbf mathit mathsf mathbb mathcal mathscr mathfrak boldsymbol mbox hbox
operatorname quad qquad hspace vspace hfill phantom ldots dots cdots dotsc dotsb rm bf it em emph noindent label tag
nonumber hline""".split()
SIGNS = {
    "times": "*", "cdot": "*", "ast": "*", "div": "/", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥",
    "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">",
}  # fmt: skip
GREEK = dict(
    zip(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon "
        "phi chi psi omega varepsilon varphi".split(),
        "αβγδεζηθικλμνξοπρστυφχψωεφ",
        strict=True,
    )
)
OPERATORS = {sign: sign for sign in "+-*/^=<>!%≤≥≠"} | dict(zip("×·⋅∗÷−⩽⩾", "****/-≤≥", strict=True))
SUPER, SUB = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"


def command(match: re.Match) -> str:
    """What a LaTeX command is rewritten to before words are cut."""
    name = match[1].lower()
    if name in ("frac", "dfrac", "tfrac", "cfrac"):
        single = re.match(r"\s*([a-zA-Z0-9])(?:\s*([a-zA-Z0-9]))?", match[2])
        if not single:
            return " / " + match[2]
        return f" / {single[1]} {single[2] or ''} " + match[2][single.end() :]
    if name in ("begin", "end"):
        return " " + re.sub(r"^[a-zA-Z{*]*", "", match[2])
    said = " " if name in DROPPED else f" {SIGNS[name]} " if name in SIGNS else f" {GREEK.get(name, name)} "
    return said + match[2]


def letter(char: str) -> str:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return ""
    plain = unicodedata.normalize("NFKD", char).lower()
    if len(plain) > 1 and all(unicodedata.combining(mark) for mark in plain[1:]):
        plain = plain[0]
    return plain if len(plain) == 1 and plain.isalnum() else char


def words(text: str, operators: bool = False) -> list[str]:
    """As `numerics.words.spell`."""
    text = re.sub(r"\\[\\!>]", " ", text)
    # From the end, so that what a command looks at behind itself has no commands left in it is not given:
    # each command sees the raw text up to the next backslash.
    text = re.sub(r"\\([a-zA-Z]+)([^\\]*)", command, text)
    out = []
    shift = ""
    for char in text:
        now = "^" if char in SUPER else "_" if char in SUB else ""
        if now != shift and unicodedata.category(char) not in ("Mn", "Me", "Cf"):
            out.append("^" if now == "^" else " ")
            shift = now
        if char in OPERATORS:
            out.append(OPERATORS[char])
        elif unicodedata.category(char) in ("Mn", "Me", "Cf"):
            continue
        else:
            out.append(letter(char) if char.isalnum() else " ")
    pattern = r"[^\W_]+|[-+*/^=<>!%≤≥≠]" if operators else r"[^\W_]+"
    return re.findall(pattern, "".join(out))


def grams(row: list, length: int) -> list[tuple]:
    """All runs of `length` members in order; of a shorter row the row, of an empty one none."""
    if not row:
        return []
    return [tuple(row[at : at + length]) for at in range(max(1, len(row) - length + 1))]


def jaccard(one: list, other: list, length: int) -> float:
    left, right = set(grams(one, length)), set(grams(other, length))
    return len(left & right) / len(left | right) if left | right else 1.0


def shared(sought: list[list], rows: list[list], length: int) -> list[list[int]]:
    """Every longest run of at least `length` that a row shares with a sought row, found by trying all places."""
    found = []
    for r, row in enumerate(rows):
        for at in range(len(row)):
            for s, other in enumerate(sought):
                for there in range(len(other)):
                    if at and there and row[at - 1] == other[there - 1]:
                        continue
                    n = 0
                    while at + n < len(row) and there + n < len(other) and row[at + n] == other[there + n]:
                        n += 1
                    if n >= length:
                        found.append([r, at, s, there, n])
    return found
