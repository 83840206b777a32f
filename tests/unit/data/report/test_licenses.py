"""What licenses ask for, alone and together."""

import pytest

from sft.data.manifest import SourceFacts
from sft.data.report.licenses import Terms, consequences, source_licenses, terms
from tests.support.manifests import source_facts

CONFLICT = "Conflicting conditions"


def facts(**licenses: str) -> dict[str, SourceFacts]:
    """Sources of which every recipe allows commercial use; a license that ends with ! is one whose recipe does not."""
    return {
        name: source_facts(license=text.rstrip("!"), commercial=text[-1:] != "!") for name, text in licenses.items()
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MIT", Terms(commercial=True, attribution=True)),
        (" apache-2.0 ", Terms(commercial=True, attribution=True)),
        ("CC0-1.0", Terms(commercial=True, attribution=False)),
        ("CC-BY-4.0", Terms(commercial=True, attribution=True)),
        ("cc-by-sa-3.0", Terms(commercial=True, attribution=True, share_alike=True)),
        ("CC-BY-NC-4.0", Terms(commercial=False, attribution=True)),
        ("CC-BY-NC-SA-4.0", Terms(commercial=False, attribution=True, share_alike=True)),
        ("CC-BY-NC-ND-3.0-IGO", Terms(commercial=False, attribution=True, adaptations=False)),
        ("ODbL-1.0", Terms(commercial=True, attribution=True, share_alike=True)),
        ("none stated", None),
        ("", None),
        ("My own license", None),
        ("CC-BY", None),
        ("CC-BY-SA-ND-4.0", None),
    ],
)
def test_a_license_is_known_by_its_identifier(name: str, expected: Terms | None) -> None:
    assert terms(name) == expected


@pytest.mark.parametrize(
    ("name", "commercial", "note"),
    [
        ("MIT", True, ""),
        ("MIT!", False, "the recipe does not allow commercial use, though the license does"),
        ("CC-BY-NC-4.0!", False, ""),
        ("CC-BY-NC-4.0", False, "the license does not allow commercial use, though the recipe does"),
        ("none stated!", False, "no license is stated, treated as restricted"),
        ("odd", False, "not a license known here, treated as restricted though the recipe allows commercial use"),
    ],
)
def test_license_and_recipe_must_both_allow_commercial_use(name: str, commercial: bool, note: str) -> None:
    (found,) = source_licenses(facts(source=name))
    assert (found.commercial, found.note) == (commercial, note)


@pytest.mark.parametrize(
    ("licenses", "titles"),
    [
        ({"a": "CC0-1.0"}, ["Commercial use is allowed"]),
        ({"a": "MIT", "b": "CC0-1.0"}, ["Commercial use is allowed", "Attribution"]),
        ({"a": "MIT", "b": "CC-BY-NC-4.0"}, ["Not for commercial use", "Attribution"]),
        ({"a": "CC0-1.0", "b": ""}, ["Not for commercial use", "No known license"]),
        ({"a": "CC-BY-SA-3.0", "b": "cc-by-sa-4.0"}, ["Commercial use is allowed", "Attribution", "Share-alike"]),
        ({"a": "CC-BY-SA-3.0", "b": "ODbL-1.0"}, ["Commercial use is allowed", "Attribution", "Share-alike", CONFLICT]),
        (
            {"a": "CC-BY-SA-3.0", "b": "CC-BY-NC-4.0"},
            ["Not for commercial use", "Attribution", "Share-alike", CONFLICT],
        ),
        ({"a": "CC-BY-NC-SA-4.0", "b": "CC-BY-NC-4.0"}, ["Not for commercial use", "Attribution", "Share-alike"]),
        ({"a": "CC-BY-ND-4.0"}, ["Commercial use is allowed", "No derivatives", "Attribution"]),
    ],
)
def test_conditions_add_up(licenses: dict[str, str], titles: list[str]) -> None:
    assert [item.title for item in consequences(source_licenses(facts(**licenses)))] == titles


def test_a_condition_names_the_sources_it_comes_from() -> None:
    found = {
        item.title: item for item in consequences(source_licenses(facts(a="MIT", b="CC-BY-SA-3.0", c="", d="CC0-1.0")))
    }
    assert found["Not for commercial use"].text.startswith("c. ")
    assert "a, b," in found["Attribution"].text
    assert "b (CC-BY-SA-3.0)" in found["Share-alike"].text
    assert [title for title, item in found.items() if item.is_warning] == [
        "Not for commercial use",
        "No known license",
        CONFLICT,
    ]
