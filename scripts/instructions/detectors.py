"""Whether an answer shows one of five behaviours, told by regular expressions."""

from __future__ import annotations

import re

BEHAVIOURS = ("yes or no", "code", "missing input", "bulleted list", "numbered list")

YES_OR_NO = re.compile(r"\W*(?:yes|no)\b(?!\s+\d)", re.IGNORECASE)

CODE = re.compile(
    r"```"
    r"|^[ \t]*(?:def\s+\w+\s*\(|(?:async\s+def|class)\s+\w+|import\s+\w+|from\s+[\w.]+\s+import\b)"
    r"|^[ \t]*(?:for\s+.+\bin\b.+:|while\s+.+:|print\(|return(?:[ \t]|$))",
    re.MULTILINE,
)

BULLET = re.compile(r"^[ \t]*[-*•][ \t]+\S", re.MULTILINE)

NUMBER = re.compile(r"^[ \t]*\d+[.)][ \t]+\S", re.MULTILINE)

_THING = (
    r"\b(?:texts?|article|paragraphs?|passages?|e-?mail|letter|report|essay|poem|story|stories|speech|sentences?|review"
    r"|minutes|release|announcement|transcript|clause|chapter|instructions|post|draft|document|file|input|content"
    r"|information|details|message|excerpt|attachment|wording|code|list|data|image|context|piece|material|lyrics"
    r"|script)\b"
)
_NEAR = r"[^.!?\n]{0,60}?"
_NOT = r"(?:(?:do|did|can|could)(?:n't| not)|can't|cannot|(?:'m|am) (?:unable|not able) to)"
_GIVEN = r"(?:included|attached|provided|given|shared|pasted|sent|received)"
_ABSENT = rf"(?:missing|not\s+(?:{_GIVEN}|there|here))"

MISSING = re.compile(
    "|".join(
        (
            # The text is not there.
            rf"\bI\s*{_NOT}\s+(?:actually\s+|currently\s+)?"
            rf"(?:see|find|have|receive|get|locate|access|view|open|read)\b{_NEAR}{_THING}",
            r"\b(?:message|request|question|prompt)\s+(?:does not|doesn't|did not|didn't)\s+(?:contain|include)\b",
            rf"(?:\b(?:I|you)|{_THING})\s+(?:haven't|have not|hasn't|has not)\s+(?:yet\s+)?(?:been\s+)?{_GIVEN}\b",
            rf"{_THING}{_NEAR}\b(?:is|are|was|were|seems?|appears?)\b{_NEAR}\b{_ABSENT}\b",
            rf"{_THING}\s+(?:did not|didn't)\s+come\s+through\b",
            rf"\bno\s+{_NEAR}{_THING}\s+(?:in\s+your|(?:has\s+)?reached|was|were|{_GIVEN})\b",
            rf"\bwithout\s+the\s+{_NEAR}{_THING},?\s+I\s*{_NOT}",
            r"\bnothing\s+was\s+(?:attached|included|provided)\b",
            # It is asked for.
            rf"\bI(?:'d|'ll| would| will)?\s+need\s+(?:the|your|to see)\s+{_NEAR}{_THING}",
            rf"\b(?:as\s+soon\s+as\s+I\s+have|once\s+I\s+have)\s+{_NEAR}{_THING}",
            rf"\b(?:please|could\s+you|can\s+you|would\s+you)\s+{_NEAR}"
            rf"\b(?:provide|share|paste|send|include|attach|add|supply|copy|type|upload|post|give\s+me)\b"
            rf"{_NEAR}{_THING}",
            rf"\b(?:if|once|when)\s+you\s+{_NEAR}\b(?:provide|share|paste|send)\s+(?:me\s+)?(?:the|your)\s+"
            rf"{_NEAR}{_THING}",
            # The same of "it".
            rf"\b(?:I\s*)?{_NOT}\s+(?:see|find|receive|get|locate|access|open)\s+(?:it|them)\b",
            r"\b(?:please|could\s+you|can\s+you|would\s+you)\s+(?:go\s+ahead\s+and\s+)?"
            r"(?:provide|share|paste|send|include|attach|add|upload|post)(?:\s+(?:it|them))?"
            r"(?:\s+(?:again|over|here|below|to\s+me|with\s+me))?\s*[.!?]",
        )
    ),
    re.IGNORECASE,
)


def detect(behaviour: str, answer: str) -> bool:
    """Whether an answer shows a behaviour.

    - ``yes or no``: apart from marks such as quotes or asterisks, the answer begins with the word yes or no, in any
      case; not with No and a number (No 7), nor with a longer word (Nobody, Yesterday).
    - ``code``: a fence of three backticks anywhere; or a line that, apart from its indent, begins as Python code does:
      a def, class or import statement, a for … in … or while … with a colon, ``print(``, or the small word ``return``.
    - ``bulleted list``: at least two lines that begin, apart from their indent, with ``-``, ``*`` or ``•`` and a space;
      so neither a rule ``---``, nor bold text ``**…``, nor a negative number counts.
    - ``numbered list``: at least two lines that begin, apart from their indent, with digits, a full stop or a closing
      bracket, and a space; so 3.5 does not count.
    - ``missing input``: one of the phrasings of ``MISSING``, in any case: that a text (article, e-mail, file, input, …)
      cannot be seen, was not received or is missing; or a request to provide, paste, send or share one, or the remark
      that it is needed, within a sentence.

    Args:
        behaviour: One of ``BEHAVIOURS``.
        answer: What the assistant said, whole.

    Raises:
        ValueError: The behaviour is none of these.
    """
    text = answer.replace("’", "'").strip()
    match behaviour:
        case "yes or no":
            return YES_OR_NO.match(text) is not None
        case "code":
            return CODE.search(text) is not None
        case "bulleted list":
            return len(BULLET.findall(text)) >= 2
        case "numbered list":
            return len(NUMBER.findall(text)) >= 2
        case "missing input":
            return MISSING.search(text) is not None
    raise ValueError(f"expected one of {', '.join(BEHAVIOURS)}, got {behaviour!r}")
