"""The project's summary counts what the records say, and its intervals know that claims of a paper go together."""

import numpy as np
import pytest

from common.lab.summary import LEAST_PAPERS, estimate, in_words, share_text, sort_of, summarise
from tests.lab.recorded import broken, claim, paper


def test_a_published_number_comes_out_where_it_is_reproduced_or_stronger() -> None:
    verdicts = ("reproduced", "stronger", "weaker", "inconclusive", "absent", "contradicted")
    record = paper("one", *(claim(name, verdict=name) for name in verdicts))
    _, every = summarise([record]).groups["all"]
    assert (every.came_out, every.share.claims) == (2, 6)
    assert share_text(every) == "2 of 6: 33%"


def test_what_was_not_run_is_no_part_of_the_share() -> None:
    gone = claim("gone", verdict="not run", judged_as="", mean=None, interval=None, effect=None)
    _, every = summarise([paper("one", claim("here"), gone)]).groups["all"]
    assert (every.came_out, every.share.claims) == (1, 1)


def test_a_number_at_another_operating_point_counts_as_the_direction_that_was_judged() -> None:
    elsewhere = claim("elsewhere", judged_as="direction")
    summary = summarise([paper("one", claim("here"), elsewhere)])
    assert sort_of(elsewhere) == "elsewhere"
    assert summary.groups["all"][1].share.claims == 1
    assert summary.verdicts["elsewhere"] == {"reproduced": 1}
    assert summary.directions == 1


def test_a_cost_at_another_operating_point_is_no_direction_that_could_be_false() -> None:
    cost = claim("cost", kind="at_most", judged_as="direction", verdict="inconclusive", effect=None)
    assert summarise([paper("one", cost)]).directions == 0


def test_directions_parities_and_invariants_count_apart() -> None:
    kinds = ("direction", "parity", "invariant")
    record = paper("one", *(claim(kind, kind=kind, paper_value=None, effect=None) for kind in kinds))
    summary = summarise([record])
    assert all(summary.verdicts[kind] == {"reproduced": 1} for kind in kinds)  # type: ignore[index]
    assert summary.groups["all"][1].share.value is None


def test_headlines_and_evidence_classes_have_shares_of_their_own() -> None:
    record = paper(
        "one",
        claim("a", headline=True),
        claim("b", evidence="measured", verdict="weaker", effect=0.2),
    )
    groups = summarise([record]).groups
    assert [share_text(group) for group in groups["all"]] == ["1 of 1: 100%", "1 of 2: 50%"]
    assert [share_text(group) for group in groups["measured"]] == ["–", "0 of 1: 0%"]
    assert groups["all"][1].effect.value == pytest.approx(0.55)  # the median of 0.9 and 0.2


def test_a_control_and_a_placebo_are_counted_on_upheld_claims_only() -> None:
    record = paper(
        "one",
        claim("both", control=broken("off"), placebo=broken("random")),
        claim("also", control=broken("off", "could not tell"), also=[broken("other")]),
        claim("neither", control=broken("off", "does not break it"), placebo=broken("random", "identity")),
        claim("untried"),
        claim("fallen", verdict="absent", control=broken("off", "nothing to break")),
    )
    summary = summarise([record])
    assert (summary.upheld, summary.not_shown, summary.untried) == (4, 1, 1)
    assert (summary.control.breaks, summary.control.tried) == (2, 3)
    assert (summary.placebo.breaks, summary.placebo.tried) == (1, 2)


def test_false_directions_are_a_fortieth_of_those_judged() -> None:
    record = paper("one", *(claim(f"d{i}", kind="direction", paper_value=None) for i in range(40)))
    assert summarise([record]).false_directions == pytest.approx(1.0)


def test_revised_provisional_and_awaiting_claims_are_said() -> None:
    one = paper(
        "one", claim("a", revised=["tolerance"]), claim("b", marks=["provisional: 1 of 3 recordings"])
    )
    words = "\n".join(in_words(summarise([one, paper("two", claim("c"), awaiting="its second judging")])))
    assert "1 claim with a bound that was revised" in words
    assert "1 claim provisional" in words
    assert "1 claim of 1 paper awaiting" in words


def test_without_records_there_is_nothing_to_divide_by() -> None:
    assert in_words(summarise([]))[0].startswith("0 claims of 0 papers. Of 0 published numbers")


# --- intervals over papers ----------------------------------------------------------------------------------


def test_few_papers_have_no_interval() -> None:
    assert estimate([[1.0], [0.0]] * 2, np.mean).interval is None
    assert estimate([[1.0], [0.0], []] * 2, np.mean).papers == LEAST_PAPERS - 1


def test_claims_of_a_paper_that_go_together_widen_the_interval() -> None:
    alone = [[float(i % 2)] for i in range(100)]
    together = [[float(i % 2)] * 10 for i in range(10)]
    widths = []
    for clusters in (alone, together):
        found = estimate(clusters, np.mean)
        assert found.value == 0.5 and found.claims == 100 and found.interval is not None
        widths.append(found.interval[1] - found.interval[0])
    # standard error of a share of a half among 100 and among 10 that are independent: 0.05 and 0.158
    assert widths[0] == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    assert widths[1] == pytest.approx(2 * 1.96 * 0.158, rel=0.15)


def test_the_same_values_give_the_same_interval() -> None:
    clusters = [[0.3, 0.9], [1.1], [0.7], [2.0, 0.1], [0.8], [1.0]]
    assert estimate(clusters, np.median) == estimate(clusters, np.median)
