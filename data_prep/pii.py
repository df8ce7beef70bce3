"""Personal data in a fixed written form: found, replaced by a token, counted, never reported.

Names and postal addresses have no such form and stay. Where prices, dates, part numbers or scores
share a form, it stays too: the patterns rather miss a number than damage a text. Every repetition
is bounded, so the time is linear in the length of the text.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import numpy as np

Decision = Callable[[str], bool]

# `\d` is a digit of any script, so that fullwidth digits count; these are what may part digits.
_PART = r"[-. \u00a0\u2010-\u2015\u30fc\uff0d]"

# Most texts hold none of this, and these two say so at little cost.
_SEVEN_DIGITS = re.compile(rf"\d(?:(?:{_PART}|[()/]){{0,2}}\d){{6}}")
_SEVEN_DIGITS_SPAN = 6 * 3  # characters from the first to the last of them, at most
_DOTTED_DIGITS = re.compile(r"\.[0-9]{1,3}\.[0-9]")

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}"
)

# Issuers begin with 3 to 6 or 22 to 27 (ISO/IEC 7812), books with 97.
_CARD = re.compile(
    r"""(?<![A-Za-z\d])(?<!\d[-.])(?=[3-6]|2[2-7])
    (?:\d{13,19}
      |\d{4}([- ])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{6}\1\d{4,5}))
    (?![A-Za-z\d]|[-.]\d)""",
    re.VERBOSE,
)

# Four numbers after such a word are a version; five numbers are no address.
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IP4 = re.compile(
    r"(?<![A-Za-z0-9.])(?<!ersion )(?<!irmware )(?<!OS )(?<!ver )(?<!ver\. )"
    rf"(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?[0-9]|-?[A-Za-z])"
)
# Global addresses begin with 2 or 3, local ones with f; almost no other text with colons does.
_IP6 = re.compile(
    r"(?<![A-Za-z0-9:.])[23fF][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?<!:)(?![A-Za-z0-9:])"
)

_AREA = r"[0\uff10](?![0\uff10])\d{1,4}"
_PHONE = re.compile(
    rf"""(?<![A-Za-z\d$+])(?<!\d[-./:,])
    (?:(?:\+(?!\d{{0,9}}0{{6}})[1-9]|00[1-9]\d{{0,2}}{_PART})  # a country code
         (?:(?:{_PART}|[()]){{0,2}}\d){{7,14}}
      |(?:1{_PART}?)?(?:\([2-9]\d\d\){_PART}?|[2-9]\d\d[-./])  # North America
         [2-9]\d\d[-.]\d{{4}}
      |(?:\({_AREA}\){_PART}?|{_AREA}(?:{_PART}|/))  # a leading zero
         (?:\d{{2,4}}{_PART}\d{{4}}|\d{{3}}{_PART}\d{{3}}|\d{{6,8}})
      |0[1-9]{_PART}[1-9]\d(?:{_PART}\d\d){{3}}  # France
      |0[6-9]\d{{4}}{_PART}\d{{5}}  # India
    )(?![A-Za-z\d]|[-/.]\d)""",
    re.VERBOSE,
)


def scrub_texts(
    texts: Sequence[str | None], kinds: Collection[str], counts: Counter[str]
) -> list[str | None]:
    """`scrub` for each of the texts that there are. Those without a number are found all at once,
    at a tenth of what a search in each costs."""
    numbers = _may_hold_number(texts)
    return [
        text and _scrub(text, kinds, counts, number)
        for text, number in zip(texts, numbers, strict=True)
    ]


def scrub(text: str, kinds: Collection[str], counts: Counter[str]) -> str:
    """`text` with each match of `kinds` (of email, card, ip, phone) as <EMAIL>, <CARD>, ...

    `counts` gains the number of replacements of each kind. Cards go before phones, because a part
    of a card's number can look like a phone's.
    """
    return _scrub(text, kinds, counts, True)


def _scrub(text: str, kinds: Collection[str], counts: Counter[str], may_hold_number: bool) -> str:
    if "email" in kinds and "@" in text:
        text = _replaced("email", _EMAIL, text, counts)
    if "ip" in kinds and _DOTTED_DIGITS.search(text):
        text = _replaced("ip", _IP4, text, counts)
    if "ip" in kinds and ("::" in text or text.count(":") >= 7):
        text = _replaced("ip", _IP6, text, counts, _is_ip6)
    with_number = may_hold_number and ("card" in kinds or "phone" in kinds)
    if with_number and _SEVEN_DIGITS.search(text):
        if "card" in kinds:
            text = _replaced("card", _CARD, text, counts, _passes_luhn)
        if "phone" in kinds:
            text = _replaced("phone", _PHONE, text, counts, _has_phone_length)
    return text


def _may_hold_number(texts: Sequence[str | None]) -> list[bool]:
    """Of each text whether it could have `_SEVEN_DIGITS`; digits beyond ASCII are not looked at."""
    together = "\n".join(text or "" for text in texts)
    found = np.array([text is not None and not text.isascii() for text in texts], bool)
    code = np.frombuffer(together.encode("ascii", "replace"), np.uint8)
    digits = np.flatnonzero(code - ord("0") < 10)
    close = digits[6:] - digits[:-6] <= _SEVEN_DIGITS_SPAN
    ends = np.cumsum([len(text or "") + 1 for text in texts])
    found[np.searchsorted(ends, digits[:-6][close], "right")] = True
    return found.tolist()  # type: ignore[no-any-return]


def _replaced(
    kind: str,
    pattern: re.Pattern[str],
    text: str,
    counts: Counter[str],
    decide: Decision = bool,
) -> str:
    def token(match: re.Match[str]) -> str:
        if not decide(match.group()):
            return match.group()
        counts[kind] += 1
        return f"<{kind.upper()}>"

    return pattern.sub(token, text)


def _passes_luhn(number: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + doubled) % 10 == 0


def _is_ip6(address: str) -> bool:
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def _has_phone_length(number: str) -> bool:
    # Without a country code, eight or nine digits in groups are as often a date or a part.
    return number.startswith("+") or sum(map(str.isdigit, number)) >= 10
