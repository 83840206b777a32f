"""Redact personal data that a regex can find: replace it by a placeholder with its kind, such as <email>.

Lookalikes are kept: addresses and hosts reserved for examples or private networks, version numbers, and numbers whose
check digits are wrong.
"""

import ipaddress
import re
from collections.abc import Callable

from sft.chat.conversation import Conversation, Drop
from sft.data.filters.rewrite import rewrite

# Every repetition is bounded and every pattern starts at the start of a word, so that no text makes them slow.
_FILE_ENDINGS = "png|jpe?g|gif|webp|svg|css|js|ts|py|html?|json|md|txt"
_EMAIL = re.compile(
    r"(?<![\w.%+-])[a-z0-9][\w.%+-]{0,63}@(?:[a-z0-9-]{1,63}\.){1,5}"
    rf"(?!(?:{_FILE_ENDINGS})\b)[a-z]{{2,24}}(?![\w-])",
    re.IGNORECASE | re.ASCII,
)
_RESERVED_HOST = re.compile(r"@(?:.*\.)?example(?:\.\w+)?$|\.(?:test|invalid|local|localhost)$", re.IGNORECASE)

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?<!\w[/-])(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\d|-\w)", re.ASCII)
# Addresses in use start with 2 or 3 in four digits; anything shorter may be a C++ or Perl name. Networks end with "::".
_IPV6 = re.compile(
    r"[23](?<![\w:.].)[0-9a-f]{3}(?::[0-9a-f]{0,4}){1,6}:[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE | re.ASCII
)
# 3.1.2.4 is a section or a version, and 8.8.8.8 a public name server.
_SINGLE_DIGITS = re.compile(r"\d(?:\.\d){3}")
_VERSION = re.compile(r"\b(?:v|ver|version|release|build|revision|firmware|section|chapter|clause)[\s.:=#\"']*\Z", re.I)

_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d\d(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])", re.ASCII)
_CARD = re.compile(
    r"(?<![\w.+-])(?:[2-6]\d{13,18}|[2-6]\d{3}([ -])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{6}\1\d{4,5}))(?!\w|[.-]\d)",
    re.ASCII,
)
_CARD_ISSUER = re.compile(
    r"4(?:\d{15}|\d{18})|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}|62\d{14,17}"
)
_SSN = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])", re.ASCII)
_PHONES = (
    # +44 20 7946 0018: international, with the digits counted
    re.compile(r"(?<![\w+.)])(?<!\d )\+[1-9](?:[ .-]?\(?\d\)?){7,14}(?!\w|[.-]\d)", re.ASCII),
    # (212) 555-0123, 212-555-0123, 1.212.555.0123: North American
    re.compile(
        r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d\d\) ?[2-9]\d\d[ .-]|[2-9]\d\d([.-])[2-9]\d\d\1)\d{4}(?!\w|[.-]\w)",
        re.ASCII,
    ),
)
# Telephone: 030 123456: any number after a word such as "telephone"
_CALLED_PHONE = re.compile(
    r"(\b(?:tel|telephone|phone|mobile|cell|fax|whatsapp)\b\.?(?: (?:number|no\.?))?(?: is)?[ :#]{1,3}"
    r"(?:\((?=[\d ./-]+\)(?! ?\d)))?)"  # a bracket around the whole number stays
    r"\+?\(?\d(?:[ ./()-]{0,2}\d){6,14}(?!\w)",
    re.IGNORECASE | re.ASCII,
)

# A text without a match holds none of the numbers; most texts have no match.
_MANY_DIGITS = re.compile(r"\d[\d .()/-]{6}", re.ASCII)

_IBAN_COUNTRIES = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18
    FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21
    MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25
    SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_COUNTRIES.split()}


def redacted(conversation: Conversation) -> Conversation | Drop:
    """The conversation with personal data redacted: the same object if it holds none."""
    return rewrite(conversation, redact)


def redact(text: str) -> str:
    """The text with <email>, <ip_address>, <phone>, <card>, <iban> and <ssn> in place of such data."""
    if "@" in text:
        text = _EMAIL.sub(_email, text)
    if ":" in text:
        text = _IPV6.sub(_ip_address, text)
    if _MANY_DIGITS.search(text):
        for pattern, replace in _NUMBERS:
            text = pattern.sub(replace, text)
    return text


def _email(match: re.Match[str]) -> str:
    address = match[0].lower()
    # git@host is the address of a repository, not of a person.
    return match[0] if _RESERVED_HOST.search(address) or address.startswith("git@") else "<email>"


def _ip_address(match: re.Match[str]) -> str:
    if _SINGLE_DIGITS.fullmatch(match[0]) or _VERSION.search(match.string[max(match.start() - 16, 0) : match.start()]):
        return match[0]
    try:
        return "<ip_address>" if ipaddress.ip_address(match[0]).is_global else match[0]
    except ValueError:
        return match[0]


def _iban(match: re.Match[str]) -> str:
    # Capitals or digits at the end may belong to the next word: the country gives the length of the number.
    length = _IBAN_LENGTHS.get(match[0][:2], 99)
    found = re.match(rf"(?: ?[A-Z0-9]){{{length}}}(?![A-Z0-9])", match[0])
    if found is None or _remainder_97(found[0].replace(" ", "")) != 1:
        return match[0]
    return f"<iban>{match[0][found.end() :]}"


def _card(match: re.Match[str]) -> str:
    number = re.sub(r"\D", "", match[0])
    return "<card>" if _CARD_ISSUER.fullmatch(number) and _luhn_sum(number) % 10 == 0 else match[0]


def _remainder_97(iban: str) -> int:
    """The check of ISO 13616: 1 for an account number without a misprint."""
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


def _luhn_sum(digits: str) -> int:
    """The check of ISO 7812: a multiple of 10 for a card number without a misprint."""
    doubled = (2 * int(digit) for digit in digits[-2::-2])
    return sum(int(digit) for digit in digits[::-2]) + sum(number - 9 * (number > 9) for number in doubled)


_NUMBERS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (_IBAN, _iban),
    (_CARD, _card),
    (_SSN, "<ssn>"),
    (_CALLED_PHONE, r"\1<phone>"),
    *((pattern, "<phone>") for pattern in _PHONES),
    (_IPV4, _ip_address),
)
