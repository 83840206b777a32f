"""The terms of the licenses of a mixture's sources, alone and together: a summary, not legal advice."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sft.data.manifest import SourceFacts


@dataclass(frozen=True)
class Terms:
    """What a license allows and requires."""

    commercial: bool
    attribution: bool
    share_alike: bool = False
    adaptations: bool = True
    """Changed copies may be passed on."""


_CREATIVE_COMMONS = re.compile(r"cc-by(-nc)?(-sa|-nd)?-\d\.\d(-[a-z]+)?")
_VERSION = re.compile(r"-\d.*")
_FREE, _NOTICE = Terms(commercial=True, attribution=False), Terms(commercial=True, attribution=True)
_SHARE_ALIKE = Terms(commercial=True, attribution=True, share_alike=True)
_KNOWN = {
    **dict.fromkeys(("cc0-1.0", "cc-pddc", "pddl-1.0", "unlicense", "mit-0", "0bsd"), _FREE),
    **dict.fromkeys(("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "zlib"), _NOTICE),
    **dict.fromkeys(("odc-by-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0"), _NOTICE),
    **dict.fromkeys(("odbl-1.0", "cdla-sharing-1.0"), _SHARE_ALIKE),
}
_NOT_STATED = {"", "none", "none stated", "not stated", "unknown", "other"}


@dataclass(frozen=True)
class SourceLicense:
    """The license of one source."""

    source: str
    license: str
    terms: Terms | None
    """None if no license is stated, or one that is not in `_KNOWN`."""
    commercial: bool
    """Both the license and the recipe allow commercial use."""
    note: str
    """What to be careful about, empty if nothing."""


@dataclass(frozen=True)
class Consequence:
    """One condition for using the whole mixture."""

    title: str
    text: str
    is_warning: bool = False


def terms(name: str) -> Terms | None:
    """The terms of a license, by its SPDX identifier in any case; None if it is not in `_KNOWN`."""
    known_as = name.strip().lower()
    if parts := _CREATIVE_COMMONS.fullmatch(known_as):
        return Terms(parts[1] is None, attribution=True, share_alike=parts[2] == "-sa", adaptations=parts[2] != "-nd")
    return _KNOWN.get(known_as)


def source_licenses(sources: Mapping[str, SourceFacts]) -> list[SourceLicense]:
    """The license of every source of a manifest, combined with the recipe's `commercial` setting."""
    settings = {name: source.settings for name, source in sources.items()}
    return [_judged(name, str(mine["license"]), bool(mine["commercial"])) for name, mine in settings.items()]


def consequences(licenses: Sequence[SourceLicense]) -> list[Consequence]:
    """The conditions that the licenses impose together, commercial use first."""
    barred = [item.source for item in licenses if not item.commercial]
    first = (
        Consequence(
            "Not for commercial use",
            f"{', '.join(barred)}. The strictest condition holds for the whole mixture; "
            "treat a model trained on it likewise.",
            is_warning=True,
        )
        if barred
        else Consequence("Commercial use is allowed", "every source allows it, under its own conditions.")
    )
    return [first, *_conditions(licenses)]


def _judged(source: str, name: str, says_commercial: bool) -> SourceLicense:
    found = terms(name)
    commercial = says_commercial and found is not None and found.commercial
    note = ""
    if found is None:
        stated = name.strip().lower() not in _NOT_STATED
        note = "not a license known here" if stated else "no license is stated"
        note += ", treated as restricted" + (" though the recipe allows commercial use" if says_commercial else "")
    elif found.commercial != says_commercial:
        strict, loose = ("license", "recipe") if says_commercial else ("recipe", "license")
        note = f"the {strict} does not allow commercial use, though the {loose} does"
    return SourceLicense(source, name, found, commercial, note)


def _conditions(licenses: Sequence[SourceLicense]) -> Iterator[Consequence]:
    unknown = [item.source for item in licenses if item.terms is None]
    known = [(item, item.terms) for item in licenses if item.terms]
    if unknown:
        yield Consequence(
            "No known license",
            f"{', '.join(unknown)}. There is no known permission to use these rows or to pass them on.",
            is_warning=True,
        )
    if fixed := [item.source for item, asked in known if not asked.adaptations]:
        text = f"{', '.join(fixed)}. Changed copies must not be passed on, and these shards are changed copies."
        yield Consequence("No derivatives", text, is_warning=True)
    if credited := [item.source for item, asked in known if asked.attribution]:
        yield Consequence("Attribution", f"name the authors of {', '.join(credited)}, and their licenses.")
    shared = {item.source: item.license for item, asked in known if asked.share_alike}
    if shared:
        rows = ", ".join(f"{source} ({name})" for source, name in shared.items())
        yield Consequence("Share-alike", f"pass on rows of {rows}, changed ones too, under the same license only.")
    if _conflict([asked for _, asked in known], set(shared.values()), bool(unknown)):
        text = "no single license fits the whole mixture: pass it on only with each source under its own license."
        yield Consequence("Conflicting conditions", text, is_warning=True)


def _conflict(known: Sequence[Terms], share_alike: set[str], has_unknown: bool) -> bool:
    """Whether a share-alike license, which forbids further conditions, is combined with a license that adds one."""
    is_open = any(asked.share_alike and asked.commercial for asked in known)
    is_barred = has_unknown or not all(asked.commercial for asked in known)
    # Rows under an earlier version of a license may be passed on under a later one.
    families = {_VERSION.sub("", name.lower()) for name in share_alike}
    return len(families) > 1 or (is_open and is_barred)
