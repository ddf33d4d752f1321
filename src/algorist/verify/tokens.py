r"""Tokens: an answer's surface, whatever alphabet and LaTeX habits it comes in, as a flat list of plain tokens.

Two answers that differ in `\dfrac` and `\frac`, `\left(` and `(`, `\!`, `$`, `−` and `-`, `x²` and `x^2` give the
same tokens. Each pattern is tried at each place once, so that reading takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from algorist.verify.nodes import Unreadable
from algorist.verify.words import KNOWN, SHORT_WORDS, is_unit

MOST_TOKENS = 3_000
DEEPEST = 40  # brackets within brackets
OPENERS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}", r"\langle": r"\rangle", r"\begin": r"\end",
    r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}  # fmt: skip
_CLOSERS = frozenset(OPENERS.values())


class Token(NamedTuple):
    """kind: number, name (letters that belong together), word (of prose), mark (everything else)."""

    kind: str
    text: str
    spaced: bool = False  # whether white space stands before it


_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_SPELLED = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ",
    "∙": r"\cdot ", "•": r"\cdot ", "∗": "*", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "π": r"\pi ", "∞": r"\infty ",
    "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R} ",
    "ℤ": r"\mathbb{Z} ", "ℕ": r"\mathbb{N} ", "ℚ": r"\mathbb{Q} ", "ℂ": r"\mathbb{C} ", "°": r"\circ ", "º": r"\circ ",
    "′": "'", "’": "'", "‘": "'", "≈": r"\approx ", "≡": r"\equiv ", "∶": ":", "∣": "|", "⟨": r"\langle ",
    "⟩": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "→": r"\to ",
    "∠": r"\angle ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "€": r" \text{euros} ", "£": r" \text{pounds} ", "¥": r" \text{yuan} ",
    "₹": r" \text{rupees} ", "，": ", ", "。": ".", "；": "; ", "：": ":", "（": "(", "）": ")", "％": r"\%", "＝": "=",
    "＋": "+", "－": "-", "、": ", ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "…": "...",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "σ": r"\sigma ",
    "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "ε": r"\epsilon ", "ρ": r"\rho ",
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
}  # fmt: skip
_SPELLING = str.maketrans(_SPELLED)
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+|[{_SUBSCRIPTS}]+")
_LEVEL = str.maketrans(_SUPERSCRIPTS + _SUBSCRIPTS, 2 * "0123456789+-n")
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"

_ESCAPED_TWICE = re.compile(
    r"(?<!\\)\\\\(?=(?:[dtc]?frac|boxed|left|right|sqrt|text|pi|leq?|geq?|cdot|times|begin|end|in|cup|infty|mathrm|circ|pm)"
    r"(?![A-Za-z])|[{}%$])"
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\left\s*\\\{((?:(?!\\left|\\right).)*)\\right\s*\.", r"{\1}"),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", " "),
        (r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|smash|strut)(?![A-Za-z])", " "),
        (r"(?<=\d),?(?:\\!|\{,\}|\\,|\\;|\\:|\\ |~)\s*(?=\d{3}(?!\d))", ""),  # 1{,}234, 1\,234, 11,\! 111
        (r"(?<!\\)\\[,;:! ]|~|\\(?:thinspace|medspace|negthinspace|hfill|nonumber|newline)(?![A-Za-z])", " "),
        (r"\\\\\s*\[\d*\.?\d+\s*(?:pt|em|ex|mm|cm)\]", r"\\\\"),  # a gap between rows
        (r"(?:\\(?:text|mathrm))?\{\s*:\s*\}", ":"),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|.)", ""),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}|^([^{}]*)\\over(?![A-Za-z])([^{}]*)$", r"\\frac{\1\3}{\2\4}"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}|^([^{}]*)\\choose(?![A-Za-z])([^{}]*)$", r"\\binom{\1\3}{\2\4}"),
        (
            r"\\[dt]?frac\s*\{\s*\\(?:text|mathrm)\{([a-zA-Z ]+)\}\s*\}\s*\{\s*\\(?:text|mathrm)\{([a-zA-Z ]+)\}\s*\}",
            r"\\text{ \1/\2}",
        ),
        (r"(?<!\\)\{\}", ""),
        (r"\{(or|and|,)\}", r" \1 "),
        (r"\\(q?quad)(?=[A-Za-z])", r"\\\1 "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac "),
        (r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?", r"\\degree "),
        (r"(?<=[0-9})])\s*\\circ(?![A-Za-z])", r"\\degree "),
    )
)
_IMAGINARY = re.compile(r"(?<=\*)I(?![A-Za-z])|(?<![A-Za-z])I(?=\*)")  # as computer algebra prints it
_LOST_ROW = re.compile(r"(?<!\\)\\(?=[-+]?[\d.])")
_MODULO = re.compile(r"\(\s*(?:\\(?:text|mathrm|operatorname)\{\s*mod\s*\}|\\?mod)\s*([^()]*)\)")
_BASE_OF_GROUP = re.compile(r"\(\s*(\d+)\s*\)\s*_")
_GLUED = re.compile(r"(?<=[\d)}])(or|and)(?=[\dA-Z(\\-])")  # 1orW(x)
_THREES = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])")
_WRAPPERS = re.compile(
    r"\\(?:boxed|fbox|framebox|mathbf|boldsymbol|bm|ensuremath|displaylines|underline|cancel)\s*(?=\{)"
)
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|normal)?|mathrm|mathit|mathsf|mathtt|mbox|hbox|operatorname)\*?\s*\{"
)
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d{1,4}(?![\d.]))?|\.\d+)|(?P<name>[A-Za-z]+)|(?P<foreign>[^\W\d_A-Za-z]+)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<mark>\\.|<=|>=|!=|==|:=|\*\*|\.\.\.+|[-+*/^_=<>!|()\[\]{},;:&%'.#?\"`$@])",
    re.DOTALL,
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_MARKS = {"<=": r"\le", ">=": r"\ge", "!=": r"\ne", "==": "=", ":=": "=", "**": "^", r"\leq": r"\le", r"\geq": r"\ge",
    r"\leqslant": r"\le", r"\geqslant": r"\ge", r"\leqq": r"\le", r"\geqq": r"\ge", r"\neq": r"\ne", r"\lt": "<",
    r"\gt": ">", r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\lbrack": "[", r"\rbrack": "]", r"\vert": "|", r"\mid": "|", r"\lvert": "|", r"\rvert": "|", r"\colon": ":",
    r"\varnothing": r"\emptyset", r"\bigcup": r"\cup", r"\bigcap": r"\cap", r"\ldots": "...", r"\dots": "...",
    r"\cdots": "...", r"\simeq": r"\approx", r"\rightarrow": r"\to", r"\longrightarrow": r"\to", r"\land": r"\wedge",
    r"\lor": r"\vee", r"\%": "%", r"\prime": "'", r"\varphi": r"\phi", r"\varepsilon": r"\epsilon", r"\&": "and",
    r"\Vert": "|", r"\|": "|", r"\setminus": r"\backslash", r"\neg": r"\lnot", r"\ne": r"\ne", r"\infin": r"\infty",
}  # fmt: skip
_RUN_TOGETHER = re.compile(
    r"(i(?=sin|cos)|arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|sqrt|pi|exp)((?:sin|cos|[a-zA-Z]{1,2})?)"
)
_UNIT_LETTERS = frozenset("mgshlLNJWVKFC")  # in \\text{ m} a unit; elsewhere a letter is a variable
_LATEX = r"""\frac \sqrt \binom \dbinom \tbinom \begin \end \le \ge \ne \in \notin \equiv \sim \approx \cup \cap
    \pm \mp \to \quad \qquad \Rightarrow \implies \iff \Leftrightarrow \therefore \bmod \pmod \mod \sum \prod \int
    \lim \infty
    \emptyset \mathbb \mathbf \langle \rangle \lfloor \rfloor \lceil \rceil \overline \overrightarrow \vec \hat \bar
    \angle \triangle \widehat \tilde \mathcal \degree \circ \wedge \vee \backslash \subset \subseteq \forall \exists
    \partial \nabla \iint \oint"""
_COMMANDS = frozenset((*(f"\\{name}" for name in KNOWN), *_MARKS, *_MARKS.values(), *_LATEX.split()))
_IGNORED = frozenset(("$", '"', "`", r"\(", r"\)", r"\[", r"\]", r"\"", "'"))


def plain(text: str) -> str:
    r"""The text in ASCII LaTeX: one spelling for each sign, without what only moves ink."""
    if not text.isascii():
        text = _RAISED.sub(_level, text.strip(_INVISIBLE)).translate(_SPELLING)
    if "\\\\" in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    if "\\" in text or "~" in text or "{" in text:
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
    if "matrix}" in text:  # 1\-2 is left of 1\\-2 where something ate a backslash
        text = _LOST_ROW.sub(r"\\\\", text)
    if "mod" in text:
        text = _MODULO.sub(r" \\pmod{\1}", text)
    text = _BASE_OF_GROUP.sub(r"\1_", text)
    text = _IMAGINARY.sub("i", _GLUED.sub(r" \1 ", text))
    if " " in text:
        text = _THREES.sub(lambda match: match[0].replace(" ", ""), text)
    return text


def _level(match: re.Match[str]) -> str:
    """Raised or lowered signs, as an exponent or an index: x² is x^{2}."""
    return f"{'^' if match[0][0] in _SUPERSCRIPTS else '_'}{{{match[0].translate(_LEVEL)}}}"


def tokens(text: str, *, thousands: bool) -> list[Token]:
    r"""The tokens of a text in the form that `plain` gives it.

    `thousands`: whether 1,234 is one number or two. Letters inside `\text{...}` are words, elsewhere names.

    Raises:
        Unreadable for a sign that no answer holds, and for more than MOST_TOKENS.
    """
    text = _WRAPPERS.sub("", text)
    if thousands and "," in text:
        text = _joined(text)
    found: list[Token] = []
    at = 0
    while at < len(text):
        prose = _TEXT.search(text, at) if "\\" in text else None
        _lex(text[at : prose.start() if prose else len(text)], found, "name")
        if prose is None:
            break
        at = _closing(text, prose.end())
        named = prose[0].startswith(r"\operatorname")
        _lex(text[prose.end() : at - 1].replace("$", " "), found, "name" if named else "word")
    return found


def _joined(text: str) -> str:
    """The text with 1,234 as 1234, except in brackets, where commas stand between members."""
    found, at, depth = [], 0, 0
    for match in _THOUSANDS.finditer(text):
        before = text[at : match.start()]
        depth += sum(before.count(mark) for mark in "([") - sum(before.count(mark) for mark in ")]")
        depth += before.count(r"\{") - before.count(r"\}")
        found += [before, match[0] if depth > 0 else match[0].replace(",", "")]
        at = match.end()
    return "".join((*found, text[at:]))


def _closing(text: str, start: int) -> int:
    """Where the brace that opens just before `start` has been closed."""
    depth = 1
    for at in range(start, len(text)):
        if text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if not depth:
                return at + 1
    raise Unreadable("a brace never closes")


def _lex(text: str, found: list[Token], letters: str) -> None:
    at, spaced = 0, False
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"holds {text[at]!r}")
        at = match.end()
        kind, said = match.lastgroup, match[0]
        if kind == "space":
            spaced = True
            continue
        if kind == "foreign":
            found.append(Token("word", said, spaced))
        elif kind == "name" and letters == "word":
            after_number = bool(found) and found[-1].kind == "number"
            unit = len(said) > 1 or (said in _UNIT_LETTERS and (spaced or after_number))
            unit = unit and (is_unit(said) or said not in KNOWN)  # \\mathrm{ln}
            found.append(Token("word" if unit else "name", said, spaced))
        elif kind in ("command", "mark"):
            if kind == "command" and said not in _COMMANDS:  # \pia^2, where something ate a space
                known = next((said[:end] for end in range(len(said) - 1, 2, -1) if said[:end] in _COMMANDS), said)
                at -= len(said) - len(known)
                said = known
            said = _MARKS.get(said, said)
            if said in _IGNORED and (said != "'" or letters == "word"):
                spaced = True
                continue
            found.append(Token("mark", said, spaced))
        else:
            found.append(Token(kind or "", said, spaced))
        spaced = False
    if len(found) > MOST_TOKENS:
        raise Unreadable("is too long")


def pairs(tokens: Sequence[Token]) -> dict[int, int]:
    """Where each bracket that opens is closed. A half-open interval pairs ( with ].

    Raises:
        Unreadable where brackets do not match, or nest deeper than DEEPEST.
    """
    found: dict[int, int] = {}
    waiting: list[int] = []
    for at, token in enumerate(tokens):
        if token.kind != "mark":
            continue
        said = token.text
        if said in OPENERS:
            waiting.append(at)
            if len(waiting) > DEEPEST:
                raise Unreadable("nests too deep")
        elif said in _CLOSERS:
            if not waiting:
                raise Unreadable(f"closes what was never opened, {said}")
            opened = tokens[waiting[-1]].text
            if OPENERS[opened] != said and not (opened in "([" and said in ")]"):
                raise Unreadable(f"{opened} is closed by {said}")
            found[waiting.pop()] = at
    if waiting:
        raise Unreadable(f"{tokens[waiting[-1]].text} never closes")
    return found


def separate(tokens: Sequence[Token]) -> list[Token]:
    r"""Letters and digits taken apart where they are several factors: xy, 2\frac12, sinx; a word stays one."""
    found: list[Token] = []
    for at, token in enumerate(tokens):
        text = token.text
        if token.kind == "number" and len(text) > 1 and text.isdigit() and at and tokens[at - 1].text == r"\frac":
            found += [Token("number", text[0]), Token("number", text[1])]
            found += [Token("number", text[2:])] if text[2:] else []
        elif text in ("U", "u") and found and found[-1].text in (")", "]", r"\}") and _opens(tokens[at + 1 : at + 2]):
            found.append(Token("mark", r"\cup", token.spaced))
        elif token.kind != "name" or len(text) == 1 or text in KNOWN:
            found.append(token)
        elif (together := _RUN_TOGETHER.fullmatch(text)) and not is_unit(text):
            rest = [together[2]] if together[2] in KNOWN else together[2]
            found += [Token("name", together[1], token.spaced), *(Token("name", letter) for letter in rest)]
        elif len(text) > 4 or _is_word(text, token.spaced, found[-1] if found else None):
            found.append(Token("word", text, token.spaced))
        else:
            found += [Token("name", letter, token.spaced and not place) for place, letter in enumerate(text)]
    return found


def _opens(following: Sequence[Token]) -> bool:
    return bool(following) and following[0].text in ("(", "[", r"\{")


def _is_word(text: str, spaced: bool, before: Token | None) -> bool:
    """Whether a few letters are a word or a unit rather than variables side by side."""
    if text.lower() in SHORT_WORDS:
        return True
    after_value = before is not None and (before.kind in ("number", "word") or before.text in (")", "}", r"\}"))
    return after_value and (is_unit(text) or (spaced and len(text) > 2 and text.islower()))  # 9 boys
