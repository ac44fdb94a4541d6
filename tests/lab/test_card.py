"""A malformed card is refused with one line that names the file, the field and the reason."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.lab.card import Card
from common.lab.errors import LabError
from tests.lab.toy import CARD


def load(folder: Path, content: dict[str, Any] | str) -> Card:
    path = folder / "toy" / "paper.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return Card.load(path)


def changed(*place: str | int, to: Any) -> dict[str, Any]:
    """The toy's card with one field set (or, to None, removed)."""
    card = copy.deepcopy(yaml.safe_load(CARD))
    inside: Any = card
    for step in place[:-1]:
        inside = inside[step]
    if to is None:
        del inside[place[-1]]
    else:
        inside[place[-1]] = to
    return card


def test_a_good_card_loads(tmp_path: Path) -> None:
    card = load(tmp_path, CARD)
    assert [claim.id for claim in card.claims] == ["gain", "peak", "kernel"]
    assert card.claim("gain").paper.number == 2.0


FIRST = ("claims", 0)
MISTAKES = [
    (("titel",), "x", "titel: unknown field"),
    (("title",), None, "title: is missing"),
    (("topic",), "cooking", "topic: .*'serving'"),
    (("year",), "2024", "year: .*integer"),
    (("arxiv",), 2401.09670, "arxiv: .*string"),
    (("arxiv",), "24-01", "arxiv: '24-01' is no arXiv number"),
    (("slug",), "other", "slug: 'other' is not the folder's name 'toy'"),
    (("not_reproduced",), [], "not_reproduced: .*at least 1"),
    (("not_reproduced",), [" "], "not_reproduced: a line is empty"),
    (("claims",), [], "claims: .*at least 1"),
    ((*FIRST, "metrics"), "m", "claims.gain.metrics: unknown field"),
    ((*FIRST, "tolerance"), 0.6, "claims.gain.tolerance: .*0.5"),
    ((*FIRST, "tolerance"), 0.3, "claims.gain: tolerance 0.3 is over 0.25: give a reason"),
    ((*FIRST, "tolerance"), None, "claims.gain: tolerance is missing"),
    ((*FIRST, "no_effect"), 1.5, "claims.gain: no_effect 1.5 already meets the claim"),
    ((*FIRST, "better"), "lower", "claims.gain: no_effect 1 already meets the claim"),
    ((*FIRST, "better"), "bigger", "claims.gain.better: .*'higher' or 'lower'"),
    ((*FIRST, "evidence"), "guessed", "claims.gain.evidence: .*'measured'"),
    (
        (*FIRST, "control"),
        "wihtout",
        "claims.gain.control: no control is named 'wihtout' .there is: without.",
    ),
    ((*FIRST, "paper", "source"), "", "claims.gain.paper: source is missing"),
    ((*FIRST, "paper", "value"), None, "claims.gain.paper: kind value needs a value"),
    ((*FIRST, "paper", "value"), float("nan"), "claims.gain.paper.value: .*finite"),
    ((*FIRST, "paper", "value"), "2.0", "claims.gain.paper.value: .*number"),
    ((*FIRST, "paper", "kind"), "direction", "claims.gain.paper: kind direction has no value"),
    ((*FIRST, "paper", "kind"), "range", "claims.gain.paper: kind range takes low and high"),
    ((*FIRST, "paper", "kind"), "at_least", "claims.gain: tolerance belongs to value and up_to"),
    ((*FIRST, "paper", "low"), 1.0, "claims.gain.paper: low and high belong to kind range"),
    (("claims", 1, "id"), "gain", "claims: two claims have the id 'gain'"),
    (("controls", "without", "set"), {}, "controls.without.set: .*at least 1"),
    (("controls", "without", "why"), "", "controls.without.why: .*at least 1"),
    (("controls", "without", "partial"), True, "controls.without: partial: true needs a reason"),
    (("controls", "spare"), {"set": {"a": 1}, "why": "w"}, "controls.spare: no claim names this control"),
]


@pytest.mark.parametrize(("place", "to", "message"), MISTAKES)
def test_a_mistake_names_file_field_and_reason(
    place: tuple[str | int, ...], to: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(LabError, match=rf"toy/paper\.yaml: {message}") as caught:
        load(tmp_path, changed(*place, to=to))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "not valid YAML"), ("- 1", "a card is a mapping"), ("", "mapping")]
)
def test_what_is_no_card_at_all_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=message):
        load(tmp_path, text)


def test_a_missing_card_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="paper.yaml: No such file"):
        Card.load(tmp_path / "toy" / "paper.yaml")


def test_a_large_tolerance_with_a_reason_and_a_partial_control_with_one_are_accepted(tmp_path: Path) -> None:
    card = yaml.safe_load(CARD)
    card["claims"][0] |= {"tolerance": 0.4, "reason": "the traces differ"}
    card["controls"]["without"] |= {"partial": True, "reason": "the engine's part remains"}
    loaded = load(tmp_path, card)
    assert loaded.claims[0].tolerance == 0.4 and loaded.controls["without"].partial


def test_a_bound_on_the_wrong_side_is_refused(tmp_path: Path) -> None:
    card = changed(*FIRST, "paper", "kind", to="at_most")
    del card["claims"][0]["tolerance"]
    with pytest.raises(LabError, match="kind at_most does not go with better: higher"):
        load(tmp_path, card)


def test_an_unknown_claim_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="toy has no claim 'gian'; it has gain, peak, kernel"):
        load(tmp_path, CARD).claim("gian")
