"""The table of claims, for a terminal and for a notebook: the paper's number, ours, the verdict, what is left."""

import html
import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from common.lab.card import Card
from common.lab.record import ArmRecord, ClaimRecord, Record

COLOURS = {  # a verdict that is not `reproduced` is a finding, not a failure: none of them is red
    "reproduced": "green",
    "stronger": "cyan",
    "weaker": "yellow",
    "absent": "blue",
    "inconclusive": "bright_black",
    "contradicted": "magenta",
    "not run": "bright_black",
}
HTML_COLOURS = {
    "reproduced": "#1a7f37",
    "stronger": "#0a7ea4",
    "weaker": "#9a6700",
    "absent": "#0550ae",
    "inconclusive": "#57606a",
    "contradicted": "#8250df",
    "not run": "#57606a",
}
HEADINGS = ("claim", "paper", "ours [95% interval]", "verdict", "left under control and placebo")
VERDICT = HEADINGS.index("verdict")
BOUND = {"at_least": "≥ ", "at_most": "≤ ", "up_to": "up to ", "exact": "= "}
NOT_SHOWN = "not shown to be the method's"
PLAIN_WIDTH = 120


def number(value: float) -> str:
    """Three significant digits, without an exponent where people would not write one."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = f"{value:.3g}"
        return f"{value:,.0f}" if "e" in digits or abs(value) >= 1000 else digits
    return f"{value:.2e}"


def paper_text(claim: ClaimRecord) -> str:
    """The paper's number with its kind and unit; a direction says that none was published."""
    if claim.paper_value is None:
        return "nothing is lost" if claim.kind == "parity" else "direction only"
    if claim.kind == "invariant":
        return f"{number(float(claim.paper_value))} {claim.unit} (ours)"  # type: ignore[arg-type]
    if isinstance(claim.paper_value, list):
        text = " to ".join(number(value) for value in claim.paper_value)
    else:
        text = BOUND.get(claim.kind, "") + number(claim.paper_value)
    return f"{text} {claim.unit}".strip()


def ours_text(mean: float | None, interval: Sequence[float] | None, note: str = "") -> str:
    """A mean with its interval, or with the note that says why there is none."""
    if mean is None:
        return "–"
    if note or interval is None:
        return f"{number(mean)} ({note or 'no interval'})"
    return f"{number(mean)} [{number(interval[0])}, {number(interval[1])}]"


def value_text(claim: ClaimRecord) -> str:
    """Ours with its interval; of a ratio whose rival stands on a floor the bound that it is."""
    if claim.capped and claim.mean is not None:
        return f"≥ {number(claim.mean)} (a bound)"
    return ours_text(claim.mean, claim.interval, claim.note)


def verdict_text(claim: ClaimRecord) -> str:
    """The verdict, what it was judged as, and what a reader must know beside it."""
    judged = f" (as a {claim.judged_as})" if claim.judged_as and claim.judged_as != claim.kind else ""
    beside = [*claim.marks, *([NOT_SHOWN] if claim.not_shown else [])]
    beside += [f"revised: {', '.join(claim.revised)}"] if claim.revised else []
    beside += [claim.reason] if claim.reason and claim.verdict == "inconclusive" else []
    return "\n".join([claim.verdict + judged, *beside])


def arm_text(arm: ArmRecord) -> str:
    """What is left under a control or placebo, and what that says of the claim."""
    left = "" if arm.left is None else f"{100 * max(0.0, arm.left):.0f}% left, "
    return f"{arm.name}: {left}{arm.outcome}"


def because_text(claim: ClaimRecord) -> str:
    """The cause of a verdict, and what became of it under its test."""
    if not claim.because or claim.verdict in ("reproduced", "not run"):
        return ""
    tested = f" ({claim.revived_by.outcome} by {claim.revived_by.name})" if claim.revived_by else ""
    return f"{claim.because}{tested}"


def off_text(claim: ClaimRecord) -> str:
    """Where the operating point is not the paper's."""
    points = [
        f"{name} {point['ours']} (paper: {point['paper']})"
        for name, point in claim.operating_point.items()
        if point.get("off")
    ]
    return f"at {', '.join(points)}" if points else ""


def stand_ins(card: Card) -> list[str]:
    """Data sets of the card that are not at hand: a run had a stand-in for them, or did without."""
    if not card.data:
        return []
    from common.data import missing

    return missing(card.data)


class Report:
    """A record as a table: `print(report)`, or the last expression of a notebook's cell."""

    def __init__(self, record: Record, card: Card | None = None, missing: Sequence[str] = ()) -> None:
        self.record = record
        self.missing = list(missing)
        claims = card.claims if card is not None else []
        self.statements = {claim.id: claim.statement for claim in claims}

    @property
    def title(self) -> str:
        seeds = len(self.record.provenance.seeds)
        changed = f", {' '.join(self.record.overrides)}" if self.record.overrides else ""
        return f"{self.record.paper}, profile {self.record.profile}{changed}, {seeds} seed{'s' * (seeds > 1)}"

    @property
    def rows(self) -> list[tuple[ClaimRecord, tuple[str, ...]]]:
        """The claims, headlines first, each with its texts."""
        return [
            (
                claim,
                (
                    f"{self.statements.get(claim.id, claim.id)}\n{claim.id}, {claim.evidence}",
                    paper_text(claim),
                    value_text(claim),
                    verdict_text(claim),
                    "\n".join(arm_text(arm) for arm in claim.controls) or "–",
                ),
            )
            for claim in sorted(self.record.claims, key=lambda claim: not claim.headline)
        ]

    @property
    def notes(self) -> list[str]:
        """Where a setting is not the paper's, why a claim came out otherwise, and why one was not run."""
        notes = [f"awaiting: {self.record.awaiting}"] if self.record.awaiting else []
        notes += [f"data: stand-in for {name}, or none (not reachable)" for name in self.missing]
        for claim in self.record.claims:
            parts = [claim.setting, off_text(claim), because_text(claim)]
            notes += [f"{claim.id}: {'; '.join(part for part in parts if part)}"] if any(parts) else []
        reasons: dict[str, list[str]] = {}
        for claim in self.record.claims:
            if claim.verdict == "not run":
                reasons.setdefault(claim.reason, []).append(claim.id)
        return notes + [f"not run, {reason}: {', '.join(ids)}" for reason, ids in reasons.items()]

    def table(self) -> Table:
        """The table for a terminal."""
        table = Table(title=self.title, caption="\n".join(self.notes) or None, caption_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold", no_wrap=heading == "verdict")
        for claim, texts in self.rows:
            colours = [""] * len(HEADINGS)
            colours[VERDICT] = COLOURS[claim.verdict]
            cells = [f"[{c}]{_plain(t)}[/]" if c else _plain(t) for c, t in zip(colours, texts, strict=True)]
            table.add_row(*cells)
        return table

    def __str__(self) -> str:
        target = io.StringIO()
        Console(file=target, width=PLAIN_WIDTH, color_system=None).print(self.table())
        return target.getvalue().rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{html.escape(text)}</th>" for text in HEADINGS)
        body = []
        for claim, texts in self.rows:
            colour = HTML_COLOURS[claim.verdict]
            lines = [html.escape(text).replace("\n", "<br>") for text in texts]
            cells = [f"<td style='text-align:left'>{line}</td>" for line in lines]
            first, *more = lines[VERDICT].split("<br>")
            bold = "<br>".join([f"<b style='color:{colour}'>{first}</b>", *more])
            cells[VERDICT] = f"<td style='text-align:left'>{bold}</td>"
            body.append(f"<tr>{''.join(cells)}</tr>")
        inside = "".join(f"<div><small>{html.escape(note)}</small></div>" for note in self.notes)
        notes = f"<details><summary>notes</summary>{inside}</details>" if inside else ""
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>{notes}"
        )


def _plain(text: str) -> str:
    """Brackets of an interval are no markup."""
    return text.replace("[", r"\[")
