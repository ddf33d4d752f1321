"""Phrases: which words of a text declare an answer, and what exactly they declare.

Everything here looks at a short piece of text (`extract` hands over the closing words), uses regular expressions
without nested repetition, and evaluates nothing. Languages other than English are covered where models use them.
"""

from __future__ import annotations

import re

from algorist.verify.formulas import Formula, formulas, inside, prose_of

LONGEST_SENTENCE = 800  # characters
LONGEST_VALUE = 300  # characters; what runs on for longer is an explanation and no answer

_IS = r"(?:(?<!\w)(?:is|are|was|would be|should be|must be|will be|becomes|equals?)(?!\w)|:)"
_SIGNS = rf"(?:{_IS}|[=：→⇒]|\\to\b)"
_DECLARES = re.compile(
    rf"\banswers?(?![\w-])[^.,;:=?!\n$]{{0,60}}?{_IS}"
    rf"|\banswers?[\s*_]{{0,8}}{_SIGNS}"
    r"|\banswers?[\s*_]{0,8}(?=\$|\\\(|\\\[)"
    r"|^[\s#*_>✅]{0,12}(?:the )?(?:final |correct )?answers?[\s*_]{0,8}$"
    r"|\bsolution:\s{0,4}(?=(?:choice|option)[\s_\\])"
    rf"|\b(?:correct|right|best) (?:option|choice)[\s*_]{{0,4}}{_SIGNS}"
    r"|(?:最终|正确)?答案(?:应该)?(?:是|为|為|應為|应为|[:：])|故选[:：]?|答え(?:は|[:：])|(?:정답|답)(?:은|[:：])"
    r"|\br[ée]ponse (?:finale |correcte )?est\b|\bantwort (?:ist|lautet)\b|\brespuesta (?:final |correcta )?es\b"
    r"|\brisposta (?:finale |corretta )?è|\bresposta (?:final |correta )?é\b|\bodpowied[zź]\w{0,3} (?:to|brzmi)\b"
    r"|\b(?:r[ée]ponse|antwort|respuesta|risposta|resposta|ответ|odpowied[zź]|cevap|đáp án)"
    r"(?: final[ea]?)?[\s*_]{0,4}(?:[:：—]|là\b)",
    re.IGNORECASE | re.MULTILINE,
)
# One of these is in whatever matches above; they are found faster.
_TRIGGERS = ["answer", "option", "choice", "réponse", "reponse", "antwort", "respuesta", "risposta", "resposta"]
_TRIGGERS += ["odpowied", "ответ", "cevap", "đáp án", "答", "故选", "정답", "답"]
_CONDITION = re.compile(r"\s(?:if|when|whether)\s")
_LAST_LINE = re.compile(r"^[\s*_>]{0,12}(?:A|Ans|Solution)[*_]{0,3}:|(?<!#)####(?!#)", re.IGNORECASE)
_REVERSED = re.compile(
    r"\s(?:is|are) (?:the|our|my) (?:only )?(?:correct |final |right )?(?:answer|solution|result)s?\b"
)
_STRONG = re.compile(r"\bfinal answers?\b|最终答案|réponse finale|respuesta final|risposta finale|resposta final", re.I)
_MARKER = re.compile(
    r"\b(?:therefore|thus|hence|so|consequently|conclu\w+|in summary|in total|final(?:ly)?|overall|which is|"
    r"we (?:find|get|have|obtain)|confident that|(?:the|this|correct) (?:final )?(?:results?|solutions?)|"
    r"value of|donc|ainsi|folglich|somit|daher|por lo tanto|por tanto|así que|portanto|logo|quindi|pertanto|dunque|"
    r"следовательно|значит|więc|zatem)\b|^\s*also\b|∴|\\therefore|"
    r"最后|最终|因此|所以|结论|综上|よって|したがって|따라서|لذا|لذلك|إذن",
    re.IGNORECASE,
)
_COPULA = re.compile(
    r"(?<!\w)(?:is|are|be|equals?|becomes|(?:simplif|round|reduc|amount|com|evaluat)\w{1,3} to|est|sont|ist|sind|"
    r"beträgt|es|son|è|sono|é|są|равн\w|это|هو|هي)(?!\w)|[=≈:：]|是|为|は"
)
# Pleasantries after the answer; the last is what Minerva's prompt taught a generation of models to say.
_FILLER = re.compile(
    r"(?:^|(?<=[.!?\n$\])*]))\s*(?:(?:so|and|yes|alright),? )?(?:(?:i think |i believe )?(?:that'?s|that is|this is) "
    r"(?:the|my|correct|right|it)\b[^.\n\d]{0,40}|everything (?:seems|checks)[^.\n\d]{0,40}|"
    r"i(?:'m| am| think| believe| hope)[^.\n\d$]{0,60})[.!]?\s*\Z",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\b[ie])(?<!\bvs)(?<!approx)[.!?](?=[\s*_\"”]|$)|[。！？]|\n|<\|", re.IGNORECASE)
_CLAUSE = re.compile(
    r",? (?:because|since|which|as required|as we)\b|, (?:so|where|but|as|it|of course|\w{2,12}ly)\b|"
    r" (?:not|non|nicht)\b|;|\((?=approx)",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"(?:not|n't|in|on|as|that|what|this|it|also|clear(?:ly)?|correct|incorrect|right|wrong|obvious|reasonable|below|"
    r"above|consistent|required|expected|found|given|based|therefore[,:]?|(?:the|an?) (?:correct|right|same|final|"
    r"answer|number|sum|value|solution|following|one|result)[^$\d]*)\b(?![-=(])",
    re.IGNORECASE,
)
_ADVERBS = re.compile(
    r"(?:(?:indeed|simply|just|exactly|definitely|approximately|about|roughly|thus,?|then|now|equal to|given by|"
    r"therefore,?|for sure|probably|likely|still|only|really|actually|clearly|option|choice)[\s_]){1,4}\s*(?=\S)",
    re.IGNORECASE,
)
_TORN = re.compile(r"\\[()\[\]]")
_CHOICE = re.compile(r"(?:option|choice)[\s_\\]+\(?([A-J])\)?(?![^\W_]|\()", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![A-Za-z\d_.])[-−+]?[$€£¥]?(?:\d{1,3}(?: \d{3})+(?!\w)|\.?\d[A-Za-z\d_²³.,/^*%°π√€!:]*)")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|ln|sqrt|pi|exp|mod|max|min|lim|inf)\b)[^\W\d_]{2,}")
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|will|would|should|equals|means|gives|makes|we|you|i|find|that|there|therefore|"
    r"thus|hence|so|because|since|answer|here|started|which)\b",
    re.IGNORECASE,
)
_OPENERS = re.compile(r"(?:the|an?|we|therefore|thus|hence|so|here|this|our|final|it|there|answer|i|when)\b", re.I)
_RANGE = re.compile(
    r"\b(?:all|any|every|except|least|most|less|greater|more|between|even|odd|none?|multiples?)\b", re.I
)
_DIRECT = re.compile(
    r"(?:\b(?:therefore|thus|hence)\b|∴|\\therefore|因此|所以)[\s,:，]{0,4}(?:(?:i think )?it(?:'s| is) )?", re.I
)
_NAMES = re.compile(
    r"(?<!\w)(?:is|are|equals?|gives?|giving|yields?|get|obtain|becomes|leaves|leaving|makes?) (?!not )"
)
_BOLD_CLOSES = re.compile(r"\*\*(?=[\s,.;:]|$)")
_BOLD_WORD = re.compile(r"\*\*(Yes|No|True|False)\b[.,]?\*\*")
_BOLD_END = re.compile(r"\*\*([^*\n]{1,60}?)[.:]?\*\*[.!]?$")
_MARKUP = " \t\r\n*_`"


def declared(text: str, *, strong: bool = False) -> str:
    """What words declare to be the answer, the last such declaration that names something; "" when there is none.

    `strong`: only what is called the final answer, and only a value, not words.
    """
    last_line = text.rstrip().rfind("\n") + 1
    lowered = text.lower()
    triggers = [at for at in (lowered.find(word) for word in _TRIGGERS) if at >= 0]
    first = max(0, min(triggers) - 20) if triggers else len(text)
    rests = [match.end() for match in _DECLARES.finditer(text, first) if not _CONDITION.search(match.group())]
    closing = _LAST_LINE.search(text[last_line:])
    if closing:
        rests.append(last_line + closing.end())
    for start in sorted(rests, reverse=True):
        if strong and not _STRONG.search(text, max(0, text.rfind("\n", 0, start - 1)), start):
            continue
        answer = declared_value(text[start : start + 4 * LONGEST_VALUE])
        if answer and (not strong or re.search(r"\d|\\|=|^\(?[A-J]\)?$", answer)):
            return answer
    return "" if strong else _reversed(text)


def declared_value(rest: str) -> str:
    """The answer at the start of what follows a declaration, up to the end of its sentence."""
    rest = rest.lstrip(_MARKUP + ":：→>").replace('\\"', '"')
    spans = formulas(rest)
    if spans and spans[0].start == 0 and (rest.startswith(("$$", "\\["))):
        return spans[0].inner
    end = next((m.start() for m in _SENTENCE_END.finditer(rest) if not inside(m.start(), spans)), len(rest))
    bold = _BOLD_CLOSES.search(rest, 0, end)  # what is declared ends where the bold does
    if bold and rest[:end].count("**") % 2:
        end = bold.start()
    said = re.sub(r"(?:です|である|입니다|이다)$", "", rest[:end]).strip(_MARKUP + '"“”')
    if not said or len(said) > LONGEST_VALUE or _is_torn(said) or _REFUSED.match(said):
        return ""
    choice = _CHOICE.match(said)
    if choice:
        return choice.group(1)
    cut = next((m.start() for m in _CLAUSE.finditer(said) if not inside(m.start(), formulas(said))), len(said))
    return reduced(said[:cut].strip(_MARKUP + ","))


def reduced(said: str) -> str:
    """A value as it stands, or the value that a sentence of words comes down to."""
    said = _without_adverbs(said)
    spans = formulas(said)
    words = _WORD.findall(prose_of(said))
    if not spans and not _NUMBER.search(said) and not _VERB.search(said):
        return said if len(words) <= 8 else ""
    if (_starts_with_value(said) or _RANGE.search(said)) and len(words) <= 6 and not _VERB.search(prose_of(said)):
        return undelimited(said)
    return _after_copula(said, spans) or _only_value(said, spans) or (undelimited(said) if len(words) <= 6 else "")


def concluded(text: str, *, affirmed: bool = False) -> str:
    """The value in the last sentence, where that sentence draws a conclusion and is complete; "" otherwise.

    `affirmed`: the sentence was followed by one that calls it the answer, which is as good as a "therefore".
    """
    sentence, complete = last_sentence(text[-LONGEST_SENTENCE:])
    if _is_torn(sentence) or (not complete and re.search(r"\bthere (?:is|are)\b", sentence)):
        return ""
    # `The area is 30.` concludes where it is the last that is said, or is said in bold.
    alone = sentence.startswith("**The ") or (complete and sentence.startswith("The "))
    if complete and (last := _last_said(sentence)):
        return last
    if not alone and not affirmed and not _MARKER.search(sentence):
        return ""
    starts = [0] + [match.start() for match in _DIRECT.finditer(sentence)][-3:]
    for start in reversed(starts):
        said = sentence[start:].rstrip(".!。* \n")
        spans = formulas(said)
        answer = _after_copula(said, spans) or _after_marker(said, spans)
        if not answer and complete and not alone:
            answer = _only_value(said, spans)
        if answer:
            return answer
    return ""


def _last_said(sentence: str) -> str:
    """The value that a sentence ends with, after the last of its verbs that can name one, or in bold."""
    if word := _BOLD_WORD.match(sentence):
        return word.group(1)
    bold = _BOLD_END.search(sentence)
    if bold and len(_WORD.findall(bold.group(1))) <= 4:
        return bold.group(1).strip()
    said = sentence.rstrip(".!。* \n")
    spans = formulas(said)
    if _CONDITION.search(said):
        return ""
    for match in reversed(list(_NAMES.finditer(said))):
        tail = said[match.end() :].strip(_MARKUP)
        prose = prose_of(tail)
        if inside(match.start(), spans):
            continue
        named = tail and _starts_with_value(tail) and not _VERB.search(prose) and not re.search(r"[,;:]\s", prose)
        return _without_units(tail, formulas(tail)) if named and len(_WORD.findall(prose)) <= 3 else ""
    return ""


def last_sentence(text: str) -> tuple[str, bool]:
    """The last sentence with the formula that a colon announces, and whether it ends like one."""
    text = text.rstrip(_MARKUP)
    spans = formulas(text)
    complete = text.endswith((".", "!", "。")) or bool(spans and spans[-1].end == len(text))
    body = text.rstrip(".!。")
    start = 0
    for match in _SENTENCE_END.finditer(body):
        after = body[match.end() :]
        if not after.strip(_MARKUP) or inside(match.start(), spans):
            continue
        announced = body[: match.start()].rstrip(_MARKUP).endswith((":", "："))
        if match.group() != "\n" or not (announced or not _WORD.search(prose_of(after))):
            start = match.end()
    for span in spans:  # a formula may hold the full stop of its sentence
        if span.start > start and span.inner.endswith(".") and _WORD.search(prose_of(body[span.end :])):
            start = span.end
    return text[start:].strip(), complete


def is_bare(text: str) -> bool:
    """Whether a whole text is nothing but an answer: `42`, `x = 3`, `$10^3$`, `Monday`; not `just 42`."""
    if len(text) > 200 or not text or text[-1] == "?" or "\n" in text or "oxed" in text:
        return False
    spans = formulas(text)
    words = len(_WORD.findall(prose_of(text)))
    if not spans and not re.search(r"[\d=\\]", text):
        return not _VERB.search(text) and (
            words == 1 or bool(re.fullmatch(r"\W*[A-Za-z]\W*|no \w{0,8}\s?solutions?\W?", text, re.I))
        )
    opened = _OPENERS.match(text) or not _starts_with_value(text) or _VERB.search(prose_of(text))
    return words <= 3 and not opened


def is_prose(text: str) -> bool:
    """Whether a text that was given as an answer is a sentence about it rather than the answer itself."""
    prose = prose_of(text)
    return len(_WORD.findall(prose)) >= (2 if _OPENERS.match(text) else 5) and bool(_VERB.search(prose))


def last_value(text: str) -> str:
    """The last formula, else the last number, of a text; "" when it holds neither."""
    spans = formulas(text)
    if spans:
        return spans[-1].inner
    numbers = _NUMBER.findall(text)
    return _trimmed(numbers[-1]) if numbers else ""


def without_pleasantries(text: str) -> str:
    """A text without the sentences after the answer that say only that it is right."""
    for _ in range(4):
        shorter = _FILLER.sub("", text[-400:].rstrip()) if text else ""
        if len(shorter) == len(text[-400:].rstrip()):
            break
        text = text[:-400] + shorter
    return text.rstrip()


def undelimited(value: str) -> str:
    """A value without the delimiters, brackets or emphasis around the whole of it."""
    value = value.strip(_MARKUP).rstrip(".,;:")
    spans = formulas(value)
    if len(spans) == 1 and spans[0].start == 0 and spans[0].end == len(value):
        return spans[0].inner
    if re.fullmatch(r"\[[^\[\],]+\]", value):
        return undelimited(value[1:-1])
    return value


def _reversed(text: str) -> str:
    found = list(_REVERSED.finditer(text))
    before = text[: found[-1].start()] if found else ""
    spans = formulas(before)
    if spans and spans[-1].end == len(before):
        return spans[-1].inner
    numbers = list(_NUMBER.finditer(before, max(0, len(before) - 40)))
    return numbers[-1].group() if numbers and numbers[-1].end() == len(before) else ""


def _after_copula(said: str, spans: list[Formula]) -> str:
    for match in _COPULA.finditer(said):
        if inside(match.start(), spans):
            continue
        tail = _without_adverbs(said[match.end() :].strip(_MARKUP + ":："))
        prose = prose_of(tail)
        if not _starts_with_value(tail) or _VERB.search(prose) or len(_WORD.findall(prose)) > 4:
            continue
        if match.group() == "=" and re.search(r"\b(?:or|and)\b|,", tail) and "=" in tail:
            variable = re.search(r"[\w\\{}]+\s*$", said[: match.start()])
            return (variable.group() + said[match.start() :]).strip() if variable else undelimited(tail)
        return _without_units(tail, formulas(tail))
    return ""


def _after_marker(said: str, spans: list[Formula]) -> str:
    marker = _DIRECT.match(said)
    if not marker:
        return ""
    if len(spans) == 1 and spans[0].start == marker.end() and spans[0].end == len(said):
        return spans[0].inner
    rest = said[marker.end() :]
    return rest if _NUMBER.fullmatch(rest) or re.fullmatch(r"\(?[A-J]\)?", rest) else ""


def _only_value(said: str, spans: list[Formula]) -> str:
    """The one number or formula of a sentence; names such as `$ABC$` do not count beside a number."""
    numbers = [_trimmed(n) for n in _NUMBER.findall(prose_of(said)) if not re.search(r"\d(?:st|nd|rd|th)$", n)]
    valued = [span.inner for span in spans if re.search(r"\d|=|\\(?:frac|sqrt|pi)", span.inner)]
    values = numbers + (valued if valued or numbers else [span.inner for span in spans])
    return values[0] if len(values) == 1 else ""


def _without_units(value: str, spans: list[Formula]) -> str:
    """A value without the words after it when it is a single one: `12 square units` is 12, `3 and 4` stays."""
    if spans and spans[0].start == 0 and len(spans) == 1 and not _NUMBER.search(value[spans[0].end :]):
        after = value[spans[0].end :].strip(" .")
        return spans[0].inner if not after or after[0].isalpha() else value
    numbers = list(_NUMBER.finditer(value))
    alone = len(numbers) == 1 and numbers[0].start() == 0 and not spans
    if alone and not re.search(r"[^\w\s.]|\d", value[numbers[0].end() :]):
        return _trimmed(numbers[0].group())
    return undelimited(value)


def _starts_with_value(said: str) -> bool:
    return not _WORD.match(said) or bool(re.match(r"[A-Za-z]{1,4}\s*=|[IVX]+\b|[A-Z]{2,4}\b", said))


def _without_adverbs(said: str) -> str:
    match = _ADVERBS.match(said)
    return said[match.end() :] if match else said


def _is_torn(said: str) -> bool:
    """Whether a formula or a box is cut off within what is said."""
    return bool(_TORN.search(prose_of(said))) or "boxed{" in said


def _trimmed(number: str) -> str:
    return number.rstrip(".,:!*^/")
