"""The StableLM format says what its model card says."""

from sft.chat.formats.base import Control
from sft.chat.formats.stablelm import CARD_SYSTEM_PROMPT, NEOX_20B_IDS, STABLELM, TAGS


def test_the_card_prompt_is_the_default() -> None:
    assert STABLELM.default_system == CARD_SYSTEM_PROMPT


def test_nothing_but_tags_stands_between_texts() -> None:
    assert [marker.parts for marker in STABLELM.markers] == [
        (Control("<|SYSTEM|>"),),
        (Control("<|USER|>"),),
        (Control("<|ASSISTANT|>"),),
        (Control("<|USER|>"),),
        (Control("<|endoftext|>"),),
    ]
    assert STABLELM.turn_lead == ""


def test_loss_falls_on_what_ends_an_answer_and_on_no_other_tag() -> None:
    assert [len(marker.learnt) for marker in STABLELM.markers] == [0, 0, 0, 1, 1]


def test_answers_stop_at_every_control_token_in_the_order_of_the_card() -> None:
    assert [NEOX_20B_IDS[token] for token in STABLELM.stop_tokens] == [50278, 50279, 50277, 1, 0]
    assert set(STABLELM.stop_tokens) == set(STABLELM.control_tokens) == {"<|endoftext|>", "<|padding|>", *TAGS}
