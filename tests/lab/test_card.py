"""A malformed card is refused with one line that names the file, the field and the reason."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.lab.card import Card
from common.lab.errors import LabError
from common.lab.evaluate import judged_digest
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
    assert [claim.id for claim in card.claims] == ["gain", "peak", "slow", "kernel"]
    assert card.claim("gain").paper.number == 2.0 and card.unfinished() == []


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
    ((*FIRST, "no_effect"), 2.0, "claims.gain: no_effect 2 already meets the claim"),
    ((*FIRST, "no_effect"), None, "claims.gain: no_effect is missing"),
    ((*FIRST, "better"), "lower", "claims.gain: no_effect 1 already meets the claim"),
    ((*FIRST, "better"), "bigger", "claims.gain.better: .*'higher' or 'lower'"),
    ((*FIRST, "evidence"), "guessed", "claims.gain.evidence: .*'measured'"),
    (
        (*FIRST, "control"),
        "wihtout",
        "claims.gain: no control is named 'wihtout' .there is: shuffled, without.",
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
    (
        ("controls", "without", "expect"),
        "does not break it",
        "controls.without: expect: .* needs its because",
    ),
    (("controls", "without", "expect"), "works", "controls.without.expect: .*'breaks it'"),
    (("settings", "spare"), {"set": {"a": 1}, "why": "w"}, "settings.spare: no claim is revived_by it"),
    (("settings", "without"), {"set": {"a": 1}, "why": "w"}, "settings.without: no claim is revived_by it"),
    ((*FIRST, "revived_by"), "luck", "claims.gain.revived_by: no setting is named 'luck' .there is: quick."),
    ((*FIRST, "placebo"), "luck", "claims.gain: no control is named 'luck'"),
    ((*FIRST, "also"), ["luck"], "claims.gain: no control is named 'luck'"),
    ((*FIRST, "requires"), {"n": [5.0, 1.0]}, "claims.gain: requires.n: .* is no floor and no .low, high."),
    ((*FIRST, "requires"), {"n": [5.0]}, "claims.gain: requires.n: .* is no floor"),
    ((*FIRST, "free"), {"bias": [1.0, 1.0]}, "claims.gain: free.bias: .* is no range"),
    ((*FIRST, "free"), {"bias": [1.0, 2.0, 3.0]}, "claims.gain: free.bias: .* is no range"),
    (
        (*FIRST, "operating_point", "requests"),
        {"paper": 100},
        "claims.gain.operating_point.requests: names either",
    ),
    (
        (*FIRST, "operating_point", "requests"),
        {"paper": 100, "config": "requests", "metric": "m"},
        "claims.gain.operating_point.requests: names either a field of the config or a metric",
    ),
    (
        (*FIRST, "operating_point", "requests"),
        {"paper": 100, "config": "requests", "at": {"rate": 1.0}},
        "claims.gain.operating_point.requests: at belongs to a metric",
    ),
    (
        (*FIRST, "operating_point", "requests"),
        {"paper": 100, "ours": 100, "config": "requests"},
        "claims.gain.operating_point.requests.ours: unknown field",
    ),
    (
        (*FIRST, "revised"),
        [{"field": "tolerance", "from": 0.2, "to": 0.25}],
        "claims.gain.revised.0.why: is missing",
    ),
    ((*FIRST, "resolution"), 0.0, "claims.gain.resolution: .*greater than 0"),
    ((*FIRST, "paper", "kind"), "nearly", "claims.gain.paper.kind: .*'value'"),
    ((*FIRST, "paper", "unit"), " ", "claims.gain.paper: unit is missing"),
    (
        (*FIRST, "paper", "source"),
        "abstract (Unverified)",
        "claims.gain.paper: source: an unverified number carries no numeric verdict",
    ),
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


RATIO = {"unit": "ratio", "source": "v1, Table 1"}
COMBINATIONS: list[tuple[dict[str, Any], str]] = [
    ({"paper": {"kind": "range", "low": 3.0, "high": 2.0}}, "paper: low 3 is above high 2"),
    ({"paper": {"kind": "range", "low": 2.0}}, "paper: kind range takes low and high"),
    (
        {"paper": {"kind": "range", "low": 2.0, "high": 3.0}},
        ": tolerance belongs to value and up_to; kind range",
    ),
    (
        {"paper": {"kind": "range", "low": 1.0, "high": 3.0}, "tolerance": None},
        ": no_effect 1 already meets the claim",
    ),
    ({"paper": {"kind": "direction"}}, ": tolerance belongs to value and up_to; kind direction"),
    (
        {"paper": {"kind": "at_least", "value": 2.0}, "tolerance": None, "better": "lower"},
        ": kind at_least does not go",
    ),
    (
        {"paper": {"kind": "at_most", "value": 2.0}, "tolerance": None},
        ": kind at_most does not go with better: higher",
    ),
    # what belongs to one kind alone
    ({"least": 1.5}, ": least belongs to kind direction, not to value"),
    ({"least": 0.0}, ": least belongs to kind direction, not to value"),
    ({"margin": 0.1}, ": margin belongs to kind parity, not to value"),
    ({"at": {"rate": 1.0}}, ": at belongs to kind up_to, not to value"),
    # a direction's least
    (
        {"paper": {"kind": "direction"}, "tolerance": None, "least": 0.9},
        ": least 0.9 is no gain: no_effect is 1",
    ),
    (
        {"paper": {"kind": "direction"}, "tolerance": None, "least": 1.0},
        ": least 1 is no gain: no_effect is 1",
    ),
    (
        {"paper": {"kind": "direction"}, "tolerance": None, "better": "lower", "least": 1.2},
        ": least 1.2 is no gain: no_effect is 1, better lower",
    ),
    (
        {"paper": {"kind": "direction"}, "tolerance": None, "no_effect": {"metric": "r"}, "least": 0.9},
        ": least 0.9 is no gain: no_effect is 1",
    ),
    # parity
    ({"paper": {"kind": "parity"}, "tolerance": None}, ": margin is missing"),
    (
        {"paper": {"kind": "parity", "source": ""}, "tolerance": None, "margin": 0.1},
        "paper: source is missing",
    ),
    (
        {"paper": {"kind": "parity", "source": "unverified"}, "tolerance": None, "margin": 0.1},
        "paper: source: an unverified number",
    ),
    (
        {"paper": {"kind": "parity"}, "tolerance": None, "margin": 0.1, "left": True},
        ": left belongs to a gain",
    ),
    # a baseline's metric
    ({"no_effect": {"metric": "rival"}}, ": paper.baseline is missing"),
    ({"paper": {"kind": "value", "value": 2.0, "baseline": 1.0}}, ": paper.baseline goes with no_effect"),
    (
        {"paper": {"kind": "value", "value": 2.0, "baseline": 3.0}, "no_effect": {"metric": "rival"}},
        ": no_effect 3 already meets the claim",
    ),
    (
        {"paper": {"kind": "value", "value": 2.0, "baseline": -1.0}, "no_effect": {"metric": "rival"}},
        ": paper: value over baseline needs two numbers above 0",
    ),
    (
        {
            "paper": {"kind": "range", "low": 2.0, "high": 3.0},
            "tolerance": None,
            "no_effect": {"metric": "rival"},
        },
        ": no_effect: a metric goes with kinds of one number",
    ),
    (
        {
            "paper": {"kind": "at_most", "value": 2.0},
            "tolerance": None,
            "better": "lower",
            "no_effect": {"metric": "rival"},
        },
        ": no_effect: a metric and paper.baseline go with a gain, not with kind at_most",
    ),
    (
        {"paper": {"kind": "exact", "value": 2.0}, "tolerance": None, "no_effect": {"metric": "rival"}},
        ": no_effect: a metric and paper.baseline go with a gain, not with kind exact",
    ),
    # what is left of a score
    ({"left": True}, ": left belongs to a score"),
    ({"left": True, "no_effect": 0.5}, ": left: the paper's score leaves nothing"),
    (
        {"left": True, "no_effect": 0.5, "better": "lower", "paper": {"kind": "value", "value": 0.2}},
        ": left belongs to a score that is better higher",
    ),
    ({"paper": {"kind": "exact", "value": 1.0}, "tolerance": None, "left": True}, ": left belongs to a gain"),
]


@pytest.mark.parametrize(("changes", "message"), COMBINATIONS)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    card = yaml.safe_load(CARD)
    claim = {**card["claims"][0], **changes}
    claim["paper"] = {**RATIO, **claim["paper"]}
    card["claims"][0] = {key: value for key, value in claim.items() if value is not None}
    with pytest.raises(LabError, match=r"claims\.gain\.?" + message):
        load(tmp_path, card)


ACCEPTED: list[dict[str, Any]] = [
    {
        "paper": {"kind": "value", "value": 3.0, "baseline": 6.0},
        "better": "lower",
        "no_effect": {"metric": "rival"},
    },
    {"paper": {"kind": "direction", "source": "abstract (unverified)"}, "tolerance": None, "least": 1.2},
    {"paper": {"kind": "direction"}, "tolerance": None, "no_effect": {"metric": "rival"}},
    {"paper": {"kind": "parity"}, "tolerance": None, "margin": 0.05},
    {"paper": {"kind": "at_most", "value": 1.05}, "tolerance": None, "better": "lower", "no_effect": None},
    {"paper": {"kind": "invariant", "value": 0.0, "source": ""}, "tolerance": None, "no_effect": None},
    {"paper": {"kind": "value", "value": 0.9}, "left": True, "no_effect": 0.8},
    {"paper": {"kind": "up_to", "value": 3.0}, "at": {"rate": 3.0}},
    {"placebo": {"none": "nothing is chosen"}, "controls": None},
]


@pytest.mark.parametrize("changes", ACCEPTED)
def test_what_goes_together_is_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    card = yaml.safe_load(CARD)
    claim = {**card["claims"][0], "also": ["shuffled"], **changes}
    claim["paper"] = {**RATIO, **claim["paper"]}
    card["claims"][0] = {key: value for key, value in claim.items() if value is not None}
    load(tmp_path, card)


UNFINISHED = [
    (("finding",), None, "finding: is missing"),
    ((*FIRST, "operating_point"), None, "claims.gain.operating_point: is missing"),
    ((*FIRST, "placebo"), {"none": ""}, "claims.gain.placebo"),
    ((*FIRST, "headline"), False, "claims: 1 headline claims; 2 to 6"),
]


@pytest.mark.parametrize(("place", "to", "message"), UNFINISHED)
def test_a_card_is_whole_or_says_what_it_awaits(
    place: tuple[str | int, ...], to: Any, message: str, tmp_path: Path
) -> None:
    card = changed(*place, to=to)
    with pytest.raises(LabError, match=message):
        load(tmp_path, card)
    if to != {"none": ""}:  # no empty reason, ever
        loaded = load(tmp_path, {**card, "awaiting": "its second judging"})
        assert len(loaded.unfinished()) == 1


def test_a_headline_claim_has_a_placebo_or_says_why_not(tmp_path: Path) -> None:
    card = yaml.safe_load(CARD)
    del card["claims"][1]["placebo"]
    with pytest.raises(LabError, match="claims.peak.placebo: is missing: name one, or {none: why}"):
        load(tmp_path, card)
    del card["claims"][1]["headline"]
    card["claims"][2] |= {"headline": True, "placebo": {"none": "nothing is chosen"}}
    load(tmp_path, card)


def test_a_direction_and_a_count_need_no_operating_point(tmp_path: Path) -> None:
    card = yaml.safe_load(CARD)
    count = {"paper": {"kind": "exact", "value": 3.0, "unit": "count", "source": "v1"}}
    card["claims"][3] |= count
    load(tmp_path, card)


def test_seven_headline_claims_are_too_many(tmp_path: Path) -> None:
    card = yaml.safe_load(CARD)
    card["claims"] += [{**card["claims"][1], "id": f"peak-{i}"} for i in range(5)]
    with pytest.raises(LabError, match="claims: 7 headline claims; 2 to 6"):
        load(tmp_path, card)


def test_a_claim_knows_its_metrics_controls_and_clock(tmp_path: Path) -> None:
    card = yaml.safe_load(CARD)
    card["claims"][0] |= {
        "no_effect": {"metric": "rival"},
        "paper": {**RATIO, "kind": "value", "value": 2.0, "baseline": 1.0},
        "requires": {"tokens": 5.0},
        "operating_point": {"p": {"paper": 1.0, "metric": "load"}},
        "also": ["shuffled"],
    }
    claim = load(tmp_path, card).claims[0]
    assert claim.metrics == ["gain", "rival", "load", "tokens"]
    assert claim.controls == ["without", "shuffled"]
    kernel = load(tmp_path, card).claim("kernel")
    assert kernel.reads_a_clock and not claim.reads_a_clock
    assert not kernel.model_copy(update={"clock": False}).reads_a_clock
    counted = kernel.paper.model_copy(update={"kind": "exact"})
    assert not kernel.model_copy(update={"paper": counted}).reads_a_clock


def test_a_better_told_source_is_no_other_bound(tmp_path: Path) -> None:
    before = load(tmp_path, CARD).claims[0]
    told = load(tmp_path, changed(*FIRST, "paper", "source", to="v2, Table 1, row 3")).claims[0]
    moved = load(tmp_path, changed(*FIRST, "tolerance", to=0.2)).claims[0]
    assert told.bounds() == before.bounds() != moved.bounds()
    assert told.judged() == before.judged() and "source" not in str(before.judged())


def test_a_bound_on_the_wrong_side_is_refused(tmp_path: Path) -> None:
    card = changed(*FIRST, "paper", "kind", to="at_most")
    del card["claims"][0]["tolerance"]
    with pytest.raises(LabError, match="kind at_most does not go with better: higher"):
        load(tmp_path, card)


def test_an_unknown_claim_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="toy has no claim 'gian'; it has gain, peak, slow, kernel"):
        load(tmp_path, CARD).claim("gian")


def test_points_of_a_figure_are_quoted_and_judge_nothing(tmp_path: Path) -> None:
    points = {"a": 1323.0, "b": 1291.0}
    card = load(
        tmp_path,
        yaml.safe_dump(changed("figures", to={"figure-9": {"source": "Figure 9", "points": points}})),
    )
    assert card.figure("figure-9") == points
    assert judged_digest(card) == judged_digest(load(tmp_path, CARD))
    with pytest.raises(LabError, match="toy quotes no figure 'figure-8'; it has figure-9"):
        card.figure("figure-8")
