"""The table of claims, for a terminal and for a notebook: the paper's number, ours, the verdict, the control."""

import html
import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from common.lab.record import ClaimRecord, Record

COLOURS = {  # a verdict that is not `reproduced` is a finding, not a failure: none of them is red
    "reproduced": "green",
    "stronger": "cyan",
    "weaker": "yellow",
    "inconclusive": "bright_black",
    "contradicted": "magenta",
    "not run": "bright_black",
}
HTML_COLOURS = {
    "reproduced": "#1a7f37",
    "stronger": "#0a7ea4",
    "weaker": "#9a6700",
    "inconclusive": "#57606a",
    "contradicted": "#8250df",
    "not run": "#57606a",
}
HEADINGS = ("claim", "paper", "ours [95% interval]", "verdict", "under its negative control")
VERDICT = HEADINGS.index("verdict")
BOUND = {"at_least": "≥ ", "at_most": "≤ ", "up_to": "up to ", "exact": "= "}
FAILED = "FAILS TO BREAK IT"
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
        return "direction only"
    if isinstance(claim.paper_value, list):
        text = " to ".join(number(value) for value in claim.paper_value)
    else:
        text = BOUND.get(claim.kind, "") + number(claim.paper_value)
    return f"{text} {claim.unit}".strip()


def ours_text(mean: float | None, interval: Sequence[float] | None, note: str = "") -> str:
    """A mean with its interval, or with the note that says why there is none."""
    if mean is None or interval is None:
        return "–"
    return (
        f"{number(mean)} ({note})"
        if note
        else f"{number(mean)} [{number(interval[0])}, {number(interval[1])}]"
    )


def control_texts(claim: ClaimRecord) -> tuple[str, str]:
    """What the claim's value and verdict are under its control, and whether the control broke the claim."""
    control = claim.control
    if control is None:
        return "–", "not run"
    note = "one value" if len(control.values) == 1 else ""
    text = f"{ours_text(control.mean, control.interval, note)}: {control.verdict}"
    return text, f"{control.name} {'holds' if control.holds else FAILED}"


class Report:
    """A record as a table: `print(report)`, or the last expression of a notebook's cell."""

    def __init__(self, record: Record) -> None:
        self.record = record

    @property
    def title(self) -> str:
        seeds = len(self.record.provenance.seeds)
        changed = f", {' '.join(self.record.overrides)}" if self.record.overrides else ""
        return f"{self.record.paper}, profile {self.record.profile}{changed}, {seeds} seed{'s' * (seeds > 1)}"

    @property
    def rows(self) -> list[tuple[ClaimRecord, tuple[str, ...]]]:
        return [
            (
                claim,
                (
                    f"{claim.id}\n{claim.evidence}",
                    paper_text(claim),
                    ours_text(claim.mean, claim.interval, claim.note),
                    claim.verdict,
                    "\n".join(control_texts(claim)) if claim.control else "–",
                ),
            )
            for claim in self.record.claims
        ]

    @property
    def notes(self) -> list[str]:
        """Where a setting is not the paper's, and why a claim was not run."""
        settings = [f"{claim.id}: {claim.setting}" for claim in self.record.claims if claim.setting]
        reasons: dict[str, list[str]] = {}
        for claim in self.record.claims:
            if claim.reason:
                reasons.setdefault(claim.reason, []).append(claim.id)
        return settings + [f"not run, {reason}: {', '.join(ids)}" for reason, ids in reasons.items()]

    def table(self) -> Table:
        """The table for a terminal."""
        table = Table(title=self.title, caption="\n".join(self.notes) or None, caption_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold", no_wrap=heading == "verdict")
        for claim, texts in self.rows:
            colours = [""] * len(HEADINGS)
            colours[VERDICT] = COLOURS[claim.verdict]
            colours[-1] = "red" if FAILED in texts[-1] else ""
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
            bold = f"<b style='color:{colour}'>{html.escape(claim.verdict)}</b>"
            cells[VERDICT] = f"<td style='text-align:left'>{bold}</td>"
            body.append(f"<tr>{''.join(cells)}</tr>")
        notes = "".join(f"<div><small>{html.escape(note)}</small></div>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>{notes}"
        )


def _plain(text: str) -> str:
    """Brackets of an interval are no markup."""
    return text.replace("[", r"\[")
