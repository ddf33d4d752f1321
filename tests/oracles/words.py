"""Twins of numerics/words.py: rewritten by patterns, cut by patterns, and words stand for themselves."""

import re
import unicodedata

TYPE_ONLY = """
    left right big bigl bigr bigg biggl biggr middle displaystyle textstyle scriptstyle limits nolimits text textbf
    textit textrm texttt textsf textnormal mathrm mathbf mathit mathsf mathbb mathcal mathscr mathfrak boldsymbol mbox
    hbox operatorname quad qquad hspace vspace hfill phantom ldots dots cdots dotsc dotsb rm bf it em emph noindent
    label tag nonumber hline
"""
DROPPED = TYPE_ONLY.split()
SIGNS = {
    "times": "*", "cdot": "*", "ast": "*", "div": "/", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥", "geq": "≥",
    "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">",
}  # fmt: skip
LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi"
    " chi psi omega varepsilon varphi"
)
GREEK = dict(zip(LETTERS.split(), "αβγδεζηθικλμνξοπρστυφχψωεφ", strict=True))
OPERATORS = {sign: sign for sign in "+-*/^=<>!%≤≥≠"} | dict(zip("×·⋅∗÷−⩽⩾", "****/-≤≥", strict=True))
SUPER, SUB = "⁰¹²³⁴⁵⁶⁷⁸⁹", "₀₁₂₃₄₅₆₇₈₉"


def command(match: re.Match) -> str:
    """What a LaTeX command is rewritten to before words are cut."""
    if match[1] is None:
        return " "
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


def words(texts: list[str]) -> list[list[str]]:
    return [spell(text) for text in texts]


def symbols(texts: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Words and operators of each text, and its numbers in order of size."""
    signs = [spell(text, True) for text in texts]
    return signs, [sorted(re.findall("[0-9]+", " ".join(row))) for row in signs]


def spell(text: str, operators: bool = False) -> list[str]:
    """The words of one text, with operators if asked for."""
    text = re.sub(r"\\(?:[\\!>]|([a-zA-Z]+)([^\\]*))", command, text)
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
