import dataclasses

import pytest

from sft.chat.tokenizer import ChatTokenizer
from sft.config.model import ModelConfig
from sft.export.model_card import CardFacts, model_card
from sft.train.checkpoint.state import State


@pytest.fixture
def facts(tokenizer: ChatTokenizer, state: State) -> CardFacts:
    shape = ModelConfig(vocab_size=384, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128)
    training = dataclasses.asdict(state)
    return CardFacts("small-chat", shape, 123_456, "fp16", "Be kind.\n", tokenizer, training)


def test_the_card_names_every_source_with_its_license_and_citation(facts: CardFacts) -> None:
    card = model_card(facts)
    assert "| Free Talk | someone/free | apache-2.0 | yes |" in card
    assert "| Bound Talk | another/bound | cc-by-nc-4.0 | no |" in card
    assert "- Another, Bound Talk, 2023" in card or "Bound Talk: Another, Bound Talk, 2023" in card


def test_a_checkpoint_of_before_the_license_had_its_name_has_the_same_card(facts: CardFacts) -> None:
    expected = model_card(facts)
    assert facts.training is not None
    for source in facts.training["shards"]["sources"].values():
        source["licence"] = source.pop("license")
    assert model_card(facts) == expected


def test_a_source_without_commercial_use_binds_the_model(facts: CardFacts) -> None:
    assert "**Not for commercial use**, because of Bound Talk." in model_card(facts)


def test_without_such_a_source_the_card_does_not_forbid_it(facts: CardFacts) -> None:
    assert facts.training is not None
    del facts.training["shards"]["sources"]["bound"]
    assert "Not for commercial use" not in model_card(facts)


def test_the_card_tells_how_the_model_was_trained(facts: CardFacts) -> None:
    card = model_card(facts)
    assert "| optimizer steps | 1,234 |" in card
    assert "9,000,000, of them 6,000,000 with loss" in card
    assert "| starting weights | base-3b |" in card


def test_the_card_tells_no_place_on_the_trainers_disk(facts: CardFacts) -> None:
    assert "/home/someone" not in model_card(facts)


def test_the_card_names_the_stop_ids_in_order(facts: CardFacts) -> None:
    assert f"eos_token_id={list(facts.tokenizer.stop_ids)}" in model_card(facts)


def test_a_system_text_with_a_fence_stays_inside_its_own(facts: CardFacts) -> None:
    card = model_card(dataclasses.replace(facts, system="see\n```\ncode\n```\n"))
    assert "````\nsee\n```\ncode\n```\n````" in card


def test_the_metadata_block_comes_first(facts: CardFacts) -> None:
    assert model_card(facts).startswith("---\nlibrary_name: transformers\n")
