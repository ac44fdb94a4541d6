"""`make scoreboard`: the summary and a row a paper between two markers in README.md, and the page of each paper.

The same records give the same bytes. A missing forest plot of a recorded paper is drawn on the way.
"""

import argparse
from collections import Counter
from pathlib import Path

from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.forest import refresh_figure
from common.lab.markdown import plain, table
from common.lab.project import Project
from common.lab.readme import page, page_path
from common.lab.record import ClaimRecord
from common.lab.report import NOT_SHOWN
from common.lab.standing import Standing, standings
from common.lab.summary import (
    CLASSES,
    DRAWS,
    LEAST_PAPERS,
    Summary,
    broken,
    came_out,
    effect_text,
    in_words,
    is_provisional,
    judged_numbers,
    share_text,
    sort_of,
    summarise,
    verdicts_text,
)

START = "<!-- scoreboard: what follows is written by `make scoreboard` -->"
END = "<!-- end of the scoreboard -->"
HEADINGS = (
    "paper",
    "published numbers",
    "headline claims",
    "directions",
    "evidence",
    "broken by control, placebo",
    "run",
)
INTERVALS = (
    "*Came out: reproduced or stronger. Intervals are over papers, for claims of one paper are not independent: whole "
    f"papers are drawn with replacement ({DRAWS:,} draws from a fixed seed); with under {LEAST_PAPERS} there is none.*"
)
SHARES = (
    "published numbers",
    "headlines that came out",
    "ours over the paper's effect, median",
    "all that came out",
    "ours over the paper's effect, median",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """This command takes none."""


def run(project: Project, asked: argparse.Namespace) -> int:
    """The command: rewrite the scoreboard in README.md and the papers' own pages."""
    readme = project.root / "README.md"
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"{readme}: {error.strerror}") from error
    found = standings(project)
    drawn = [path for each in found if (path := refresh_figure(project, each)) is not None]
    texts = {readme: refreshed(found, text)}
    texts |= {page_path(project, each.slug): page(project, each) for each in found}
    changed = [path for path, fresh in texts.items() if _read(path) != fresh]
    for path in changed:
        write_atomically(path, texts[path])
    for path in [*drawn, *changed]:
        print(f"wrote {path.relative_to(project.root)}")
    if not drawn and not changed:
        print("README.md and the papers' pages are up to date")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def refreshed(found: list[Standing], text: str) -> str:
    """README's text with the scoreboard of these papers. LabError where the markers are not there once each."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise LabError(f"README.md: the scoreboard goes between one line {START} and one line {END}")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{board(found)}{END}{after}"


def board(found: list[Standing]) -> str:
    """The scoreboard in Markdown: the summary's table and sentences, and a row a paper."""
    if not found:
        return "\nNo paper is recorded yet: `make record PAPER=<slug>`.\n\n"
    summary = summarise([each.record for each in found])
    sentences = [f"- {plain(line)}" for line in in_words(summary)]
    rows = [_paper(each) for each in found]
    return "\n".join(
        ["", *shares(summary), "", INTERVALS, "", *sentences, "", *table(HEADINGS, rows), "", ""],
    )


def shares(summary: Summary) -> list[str]:
    """The table of what came out, by evidence class, with intervals over papers."""
    rows = []
    for name in ("all", *CLASSES):
        headlines, every = summary.groups[name]
        cells = (share_text(headlines), effect_text(headlines), share_text(every), effect_text(every))
        rows.append((f"**{name}**" if name == "all" else name, *cells))
    return table(SHARES, rows)


def _paper(paper: Standing) -> tuple[str, ...]:
    claims = paper.record.claims
    title = f"[{plain(paper.card.title)}](papers/{paper.slug}/)"
    finding = plain(paper.said(paper.card.finding))
    marks = "".join(f" **({mark})**" for mark in paper.marks)
    return (
        f"{title}{marks}" + (f"<br>{finding}" if finding else ""),
        _numbers(claims),
        _verdicts([claim for claim in claims if claim.headline]),
        _verdicts([claim for claim in claims if sort_of(claim) == "direction"]),
        ", ".join(name for name in CLASSES if any(claim.evidence == name for claim in claims)),
        _broken(claims),
        _run(paper),
    )


def _verdicts(claims: list[ClaimRecord]) -> str:
    return verdicts_text(Counter(claim.verdict for claim in claims)) if claims else "–"


def _numbers(claims: list[ClaimRecord]) -> str:
    """Published numbers that came out, of those judged as numbers; and those that were not."""
    judged = judged_numbers(claims)
    sorts = Counter(sort_of(claim) for claim in claims)
    beside = [(sorts["elsewhere"], "elsewhere"), (sorts["number"] - len(judged), "not run")]
    text = f"**{came_out(judged)} of {len(judged)}**" if judged else "–"
    return "<br>".join([text, *(f"{count} {what}" for count, what in beside if count)])


def _broken(claims: list[ClaimRecord]) -> str:
    """Of upheld claims those that a control breaks, and those that a placebo breaks, of as many as met one."""
    upheld = [claim for claim in claims if claim.upheld]
    control, placebo = broken(upheld)
    counts = [f"{kind.breaks} of {kind.tried}" if kind.tried else "–" for kind in (control, placebo)]
    beside = [
        (sum(claim.not_shown for claim in upheld), NOT_SHOWN),
        (sum(map(is_provisional, claims)), "provisional"),
    ]
    return "<br>".join([", ".join(counts), *(f"{count} {what}" for count, what in beside if count)])


def _run(paper: Standing) -> str:
    """How long the recorded run took, under which profiles, and on how many machines it came out so."""
    known = paper.record.provenance
    profiles = [name for name in paper.profiles if name != "default"]
    parts = [f"{known.seconds:.0f} s", f"{paper.machines} machine{'s' * (paper.machines > 1)}", *profiles]
    return "<br>".join(parts)
