"""`make scoreboard`: the table of all recorded claims, kept between two markers in README.md."""

import argparse
from collections import Counter

from common.lab.card import Card
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.project import Project
from common.lab.record import ClaimRecord, Record
from common.lab.recording import RECORDED, stale
from common.lab.report import control_texts, ours_text, paper_text

START = "<!-- scoreboard: what follows is written by `make scoreboard` -->"
END = "<!-- end of the scoreboard -->"
HEADINGS = (
    "paper",
    "claim",
    "evidence",
    "the paper's number",
    "ours [95% interval]",
    "verdict",
    "under its control",
)
STALE = "stale"  # the mark of a record whose code, config or card has changed since


def arguments(parser: argparse.ArgumentParser) -> None:
    """This command takes none."""


def run(project: Project, asked: argparse.Namespace) -> int:
    """The command: rewrite the table in README.md."""
    readme = project.root / "README.md"
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"{readme}: {error.strerror}") from error
    fresh = refreshed(project, text)
    if fresh == text:
        print("README.md: the scoreboard is up to date")
    else:
        write_atomically(readme, fresh)
        print("README.md: scoreboard rewritten")
    return 0


def refreshed(project: Project, text: str) -> str:
    """README's text with the table of the committed records. LabError where the markers are not there once each."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise LabError(f"README.md: the scoreboard goes between one line {START} and one line {END}")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{board(project)}{END}{after}"


def board(project: Project) -> str:
    """The scoreboard in Markdown: a line that sums it up, and a row a claim. LabError where a record is malformed."""
    records = [
        (Record.load(path), bool(stale(project, path)))
        for slug in project.slugs
        for profile in RECORDED
        if (path := project.record(slug, profile)).is_file()
    ]
    if not records:
        return "\nNo paper is recorded yet: `make record PAPER=<slug>`.\n\n"
    lines = [
        "",
        summary([record for record, _ in records]),
        "",
        _row(*HEADINGS),
        _row(*["---"] * len(HEADINGS)),
    ]
    for record, outdated in records:
        statements = {claim.id: claim.statement for claim in Card.load(project.card(record.paper)).claims}
        for place, claim in enumerate(record.claims):
            lines.append(
                _row(
                    "" if place else _paper(record),
                    statements.get(claim.id, claim.id),
                    claim.evidence,
                    paper_text(claim),
                    ours_text(claim.mean, claim.interval, claim.note),
                    _verdict(claim, outdated),
                    "; ".join(dict.fromkeys(control_texts(claim))),
                )
            )
    return "\n".join([*lines, "", ""])


def summary(records: list[Record]) -> str:
    """How many claims have which verdict, and how many controls hold."""
    claims = [claim for record in records for claim in record.claims]
    verdicts = Counter(claim.verdict for claim in claims)
    controls = [claim.control.holds for claim in claims if claim.control is not None]
    papers = len({record.paper for record in records})
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    return (
        f"{len(claims)} claims of {papers} paper{'s' * (papers > 1)}: {counted}. "
        f"{sum(controls)} of {len(controls)} negative controls hold."
    )


def _paper(record: Record) -> str:
    where = ""
    if record.profile != "default":
        where = f" on {record.provenance.machine.get('gpu', record.profile)}"
    return f"[{record.paper}](papers/{record.paper}/){where}"


def _verdict(claim: ClaimRecord, outdated: bool) -> str:
    why = f": {claim.reason}" if claim.reason else ""
    return f"**{claim.verdict}**{why}{f' ({STALE})' * outdated}"


def _row(*cells: str) -> str:
    clean = (" ".join(cell.split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(clean)} |"
