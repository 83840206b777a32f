"""Personal data is replaced by its kind; what only looks like it stays."""

import random
import time
from collections.abc import Callable

import pytest

from sft.chat.conversation import Conversation
from sft.data.filters.pii import redact, redacted

REDACTED = [
    ("Write to ann.lee+news@mail.corp.co.uk, please.", "Write to <email>, please."),
    ("<bob_7@corp.io> (BOB@CORP.IO)", "<<email>> (<email>)"),
    ("[a@b.org](mailto:a@b.org)", "[<email>](mailto:<email>)"),
    ("see http://84.20.13.7:8080/x and 84.20.13.7.", "see http://<ip_address>:8080/x and <ip_address>."),
    ("from 84.20.13.7/24 to 91.198.174.192", "from <ip_address>/24 to <ip_address>"),
    ("ping6 2a00:1450:4001:81b::200e now", "ping6 <ip_address> now"),
    ("2a00:1450:4001:081b:0000:0000:0000:200e", "<ip_address>"),
    ("call (212) 664-7665 or 212-664-7665 or 212.664.7665", "call <phone> or <phone> or <phone>"),
    ("1-800-362-0101 and +1 917-444-6321.", "<phone> and <phone>."),
    ("London +44 20 7946 0018, Bonn +49 (228) 997799-0", "London <phone>, Bonn <phone>"),
    ("mobile +61414567071", "mobile <phone>"),
    ("Tel.: 030 1234567; Phone: 13719206018", "Tel.: <phone>; Phone: <phone>"),
    ("my phone number is 555-3476", "my phone number is <phone>"),
    ("phone number (555-3476) and fax (555-2428)", "phone number (<phone>) and fax (<phone>)"),
    ("phone: (212) 555-0123", "phone: <phone>"),
    ("Visa 4111 1111 1111 1111, exp 12/27", "Visa <card>, exp 12/27"),
    ("4111-1111-1111-1111 5555555555554444 378282246310005", "<card> <card> <card>"),
    ("IBAN DE89 3704 0044 0532 0130 00 at my bank", "IBAN <iban> at my bank"),
    ("GB29NWBK60161331926819", "<iban>"),
    ("NL91 ABNA 0417 1643 00 BIC ABNANL2A", "<iban> BIC ABNANL2A"),
    ("SSN 536-22-8726.", "SSN <ssn>."),
]
KEPT = [
    "Write to ann@example.com, jane.doe@mail.example.org or root@host.test",
    "git clone git@github.com:owner/project.git",
    "icon@2x.png, user@localhost, @decorator.name, pkg@17.0.2, a @ b.c",
    "127.0.0.1, 192.168.1.20, 10.0.0.1, 172.16.200.51, 169.254.1.1, 0.0.0.0, 255.255.255.0, 192.0.2.44",
    "version 84.20.13.7, v84.20.13.7, Version: 84.20.13.7, release 10.84.3.12",
    "Chrome/109.0.5414.119 Safari/84.20.13.7 1.3.6.1.4.1.311",
    "3.1.2.4 Results; name servers 8.8.8.8 and 1.1.1.1; 256.300.1.2; 01.02.03.04",
    "::1 fe80::1 2001:db8::1 2000::/3 12:30:45 std::vector a::b 00:1b:63:84:45:e6 Face::Feed",
    "2023-01-15 12:30:45, 15/01/2023, 1678901234, 1678901234567, 20100527090117",
    "ISBN 978-3-16-148410-0, ISBN 9783161484100, 0-306-40615-2",
    "3.14159265358979, 0.4111111111111111, 1,234,567,890, 12345678, 555-1234, 200 300 4000",
    "4111 1111 1111 1112 is no card, nor is 1234 5678 9012 3456, nor 536-22-87266",
    "DE89 3704 0044 0532 0130 01, XX89 3704 0044 0532 0130 00, AB12CD34EF56",
    "000-12-3456, 666-12-3456, 912-12-3456, 123-00-4567, 123-45-0000, 2021-12-3456",
    "# 15 16 17 18 19 20 21\n# 22 23 24 25 26 27 28",
    "x = a +12345678901234567; y = 3 +4 5; if x > 100 +2000000: pass",
    "commit 4e5f6a7b8c9d0e1f2a3b4c5d6e7f8a9b0c1d2e3f",
]
HOSTILE = [
    *("a@", "a.", "a@a.", "1.", "1 ", "1-", "+1", "+1 ", "(1", "4", "4 ", "2222:", "2222::", ":", "AA11", "AA11 "),
    *("tel ", "phone: 1", "phone number is ", "123-", "212-555-", "1.1.1.", "a-", "_%+-", "é", "@", "v ", "version "),
]


@pytest.mark.parametrize(("text", "expected"), REDACTED)
def test_personal_data_is_replaced_by_its_kind(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "number", ["4111111111111111", "DE89370400440532013000", "378282246310005", "GB29NWBK60161331926819"]
)
def test_a_misprint_in_one_digit_is_no_number(number: str) -> None:
    for place in range(4, len(number)):
        if number[place].isdigit():
            misprint = f"{number[:place]}{(int(number[place]) + 1) % 10}{number[place + 1 :]}"
            assert redact(f"no. {misprint} here") == f"no. {misprint} here"


def test_every_text_of_a_conversation_is_redacted(talk: Callable[..., Conversation]) -> None:
    conversation = talk("Who is ann@corp.org?", "She has 84.20.13.7.", system="Ask bob@corp.org.")
    assert redacted(conversation) == talk("Who is <email>?", "She has <ip_address>.", system="Ask <email>.")


def test_a_conversation_without_personal_data_is_the_same_object(talk: Callable[..., Conversation]) -> None:
    conversation = talk(*KEPT[:-1])
    assert redacted(conversation) is conversation


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_is_slow(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < 0.2


def test_no_mixture_of_such_pieces_is_slow() -> None:
    rng = random.Random(0)
    for _ in range(5):
        text = "".join(rng.choices(HOSTILE, k=30_000))[:100_000]
        start = time.process_time()
        redact(text)
        assert time.process_time() - start < 0.2
