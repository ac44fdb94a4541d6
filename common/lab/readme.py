"""The page of a paper, papers/<slug>/README.md: what people see when they open the folder.

Written by `make scoreboard` from the card, the standing record and the docstrings of the package; the same of these
give the same bytes.
"""

import ast
import re
from pathlib import Path

from common.lab.card import Claim
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.forest import caption, figure_path
from common.lab.markdown import lines, plain, table
from common.lab.project import Project
from common.lab.record import ClaimRecord
from common.lab.report import arm_text, number, off_text, ours_text, paper_text, value_text, verdict_text
from common.lab.standing import Standing, standing

WRITTEN = "<!-- written by `make scoreboard` from paper.yaml, the records and the package's docstrings -->"
HEADINGS = (
    "claim",
    "evidence",
    "the paper's number",
    "ours [95% interval]",
    "verdict",
    "left under control and placebo",
)
LISTED = re.compile(r"\s*[\w/]+\.py\b")  # a line that says what a module is
EXPLAINED = ("reproduced", "not run")  # verdicts that need no cause
DATA = {  # files of a package that are no modules
    "paper.yaml": "the card: what the paper claims, how each claim is checked, what must break it",
    "results.json": "the record of `make record`: every claim with its verdict, and what it rests on",
    "results.full.json": "the same of PROFILE=full",
    "results.cuda.json": "the same of PROFILE=cuda",
    "observations.json.gz": "the rows that the record is judged on, of every arm",
    "observations.full.json.gz": "the same of PROFILE=full",
    "observations.cuda.json.gz": "the same of PROFILE=cuda",
    "confirmations.json": "every recording and confirmation, on whatever machine",
    "published.csv": "published inputs that nobody can run here, a row each with its source",
}


def page_path(project: Project, slug: str) -> Path:
    """Where a paper's page is."""
    return project.card(slug).with_name("README.md")


def write_page(project: Project, slug: str) -> Path | None:
    """Write a paper's page anew, as `make record` does; None where it is not recorded."""
    paper = standing(project, slug)
    if paper is None:
        return None
    write_atomically(page_path(project, slug), page(project, paper))
    return page_path(project, slug)


def page(project: Project, paper: Standing) -> str:
    """The page of a recorded paper, as Markdown. LabError where a module can't be read."""
    card, folder = paper.card, project.card(paper.slug).parent
    parts = [
        WRITTEN,
        f"# {plain(card.title)}",
        _links(paper),
        *_warnings(paper),
        plain(card.summary),
        *_finding(paper),
        *_figure(project, paper),
        "## What came out",
        _recorded(paper),
        *_claims(paper),
        *_causes(paper),
        *_settings(paper),
        "## What is not reproduced",
        "\n".join(f"- {plain(paper.said(line))}" for line in card.not_reproduced),
        "## Run it",
        _commands(project, paper),
        "## The idea, and the files",
        idea(docstring(folder / "__init__.py")),
        "\n".join(table(("file", "what it is"), files(folder))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _links(paper: Standing) -> str:
    card = paper.card
    links = [str(card.year), card.topic]
    links += [f"[arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})"] if card.arxiv else []
    links += [f"[the authors' code](https://github.com/{card.code})"] if card.code else []
    links += [f"[notebook](../../notebooks/{paper.slug}.ipynb)", "[card](paper.yaml)"]
    read = ", ".join(f"[{slug}](../{slug}/)" for slug in card.needs)
    return " · ".join(links) + (f"\n\nTo be read before: {read}." if read else "")


def _warnings(paper: Standing) -> list[str]:
    found = [
        f"> **{mark}** (PROFILE={profile}): {plain(why)}. `make refresh PAPER={paper.slug}`"
        for profile, (mark, why) in paper.outdated.items()
    ]
    return found + ([f"> **awaiting**: {plain(paper.awaiting)}"] if paper.awaiting else [])


def _finding(paper: Standing) -> list[str]:
    finding = plain(paper.said(paper.card.finding))
    return [f"**What we now know that the paper does not say:** {finding}"] if finding else []


def _figure(project: Project, paper: Standing) -> list[str]:
    path = figure_path(project, paper.slug)
    if not path.is_file():
        return []
    said = caption(path)
    about = f"The claims of {paper.slug}, ours beside the paper's numbers" if said else paper.card.title
    return [f"![{plain(about)}](figure.png)"] + ([f"*{plain(said)}*"] if said else [])


def _recorded(paper: Standing) -> str:
    known = paper.record.provenance
    machine = known.machine.get("gpu") or known.machine.get("processor") or "one machine"
    seeds = f"{len(known.seeds)} seed{'s' * (len(known.seeds) > 1)}"
    profiles = " and ".join(paper.profiles)
    confirmed = (
        f"; the same on {paper.machines} machines (`confirmations.json`)" if paper.machines > 1 else ""
    )
    return (
        f"Recorded with PROFILE={profiles}, {seeds}, in {known.seconds:.0f} s of experiment on {plain(str(machine))}"
        f"{confirmed}. [What a verdict means](../../docs/verdicts.md)."
    )


def _claims(paper: Standing) -> list[str]:
    pairs = paper.claims()
    found = []
    for title, headline in (("### Headline claims", True), ("### The other claims", False)):
        rows = [_row(paper, claim) for _, claim in pairs if claim.headline == headline]
        if rows:
            every = all(claim.headline == headline for _, claim in pairs)
            found += ["" if every else title, "\n".join(table(HEADINGS, rows))]
    return found


def _row(paper: Standing, claim: ClaimRecord) -> tuple[str, ...]:
    first, *more = verdict_text(claim).split("\n")
    where = [off_text(claim)] if claim.operating_point and off_text(claim) else []
    why = [claim.reason] if claim.verdict == "not run" and claim.reason else []
    return (
        plain(paper.statement(claim)),
        claim.evidence,
        plain(paper_text(claim)),
        plain(value_text(claim)),
        "<br>".join([f"**{plain(first)}**", *map(plain, [*more, *why, *where])]),
        lines("\n".join(arm_text(arm) for arm in claim.controls)) or "–",
    )


def _causes(paper: Standing) -> list[str]:
    """Why claims came out otherwise, and what became of each explanation under its test."""
    rows = []
    for known, claim in paper.claims():
        because = _because(paper, known, claim)
        if because or claim.verdict not in EXPLAINED:
            text = plain(because) or "not yet explained"
            rows.append(
                f"- {plain(paper.statement(claim))} (**{claim.verdict}**): {text}{'.' * (not text.endswith('.'))}"
                f"{_tested(paper, claim)}"
            )
    return ["### Why", "\n".join(rows)] if rows else []


def _because(paper: Standing, known: Claim | None, claim: ClaimRecord) -> str:
    return paper.said(known.because) if known is not None else claim.because


def _tested(paper: Standing, claim: ClaimRecord) -> str:
    arm = claim.revived_by
    if arm is None:
        return ""
    there = "not run" if arm.mean is None else f"{ours_text(arm.mean, arm.interval)}, {arm.verdict}"
    setting = paper.card.settings.get(arm.name)
    why = f" ({plain(setting.why)})" if setting else ""
    return f" Put to the test by `{arm.name}`{why}: **{plain(arm.outcome)}**, {plain(there)}."


def _settings(paper: Standing) -> list[str]:
    """Where our hardware, model or data is not the paper's; claims that share a setting share a line."""
    by_setting: dict[str, list[str]] = {}
    for known, claim in paper.claims():
        setting = paper.said(known.setting) if known is not None else claim.setting
        if setting:
            by_setting.setdefault(setting, []).append(paper.statement(claim))
    rows = [f"- {plain('; '.join(theirs))}: *{plain(setting)}*" for setting, theirs in by_setting.items()]
    return ["### Where ours is not the paper's setting", "\n".join(rows)] if rows else []


def _commands(project: Project, paper: Standing) -> str:
    slug, seconds = paper.slug, number(round(paper.record.provenance.seconds))
    commands = [
        (f"make reproduce PAPER={slug}", f"the notebook and its table; the experiment took {seconds} s"),
        (f"make falsify PAPER={slug}", "every control, placebo, free end and setting"),
        (f"make confirm PAPER={slug}", "here beside the record, kept in confirmations.json"),
    ]
    more = [name for name in project.profiles(slug) if name not in ("default", "smoke")]
    commands += [(f"make reproduce PAPER={slug} PROFILE={name}", MORE.get(name, "")) for name in more]
    commands += [("make lab", f"notebooks/{slug}.ipynb, opened by hand, shows the record")]
    width = max(len(command) for command, _ in commands)
    body = "\n".join(f"{command:<{width}}  # {about}" if about else command for command, about in commands)
    return f"```\n{body}\n```"


MORE = {
    "full": "as near the paper's scale as one machine gets",
    "cuda": "what a GPU can really measure",
}


def files(folder: Path) -> list[tuple[str, str]]:
    """Each file of a package with what it is: the first line of a module's docstring."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.name != "__init__.py":
            rows.append((f"[{path.name}]({path.name})", plain(docstring(path).partition("\n")[0])))
    rows += [(f"[{name}]({name})", about) for name, about in DATA.items() if (folder / name).is_file()]
    return rows


def idea(text: str) -> str:
    """A package's docstring as Markdown: a list of its modules is left out, what is indented is set as it stands."""
    found = []
    for paragraph in text.split("\n\n"):
        rows = paragraph.strip("\n").split("\n")
        if all(LISTED.match(line) or line.startswith("  ") for line in rows):
            if not LISTED.match(rows[0]):
                found.append("\n".join(["```", *rows, "```"]))
            continue
        found.append(re.sub(r"([<$~])", r"\\\1", paragraph))
    return "\n\n".join(found)


def docstring(path: Path) -> str:
    """The docstring of a module, "" where it has none. LabError where it can't be parsed."""
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from error
    except SyntaxError as error:
        raise LabError(f"{path}: line {error.lineno}: {error.msg}") from error
