"""The command line behind the Makefile: `python -m common.lab <command> ...`.

Every mistake is one line on stderr and a non-zero exit code; DEBUG=1 shows the trace.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.surroundings import forgive_streams

ERROR, INTERRUPTED = 1, 130
OPTIONAL = {  # commands in modules of their own: each offers arguments(parser) and run(project, arguments) -> int
    "sweep": ("common.lab.sweep", "Hydra multirun over values of the config"),
    "new": ("common.lab.scaffold", "scaffold a paper"),
    "bakeoff": ("common.lab.bakeoff", "systems of several papers on equal terms"),
    "scoreboard": ("common.lab.scoreboard", "rebuild README's scoreboard from the committed records"),
}
Arguments = argparse.Namespace
Command = Callable[[Project, Arguments], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    forgive_streams()
    chosen = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = _parser(chosen).parse_args(chosen)
        return parsed.command(Project.current(), parsed)
    except KeyboardInterrupt:
        return _say("interrupted; nothing half-written is left", INTERRUPTED)
    except BrokenPipeError:
        return ERROR
    except Exception as error:
        if os.environ.get("DEBUG"):
            traceback.print_exc()
        text = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        text = ", at ".join([text, *getattr(error, "__notes__", [])])
        hint = "" if isinstance(error, LabError) else " (DEBUG=1 shows where)"
        return _say(" ".join(text.split()) + hint, ERROR)


def _say(line: str, code: int) -> int:
    print(f"error: {line}", file=sys.stderr)
    return code


def _reproduce(project: Project, asked: Arguments) -> int:
    from common.lab.rerun import beside_the_record, whatever_tracked
    from common.lab.runner import Request

    target = None if asked.target is None else Path(asked.target).resolve()
    request = Request(asked.slug, asked.profile, _overrides(asked), target, asked.quiet)
    record, untracked = whatever_tracked(project, request)
    _print_report(project, record)
    agrees = beside_the_record(project, record)
    if agrees:
        print(agrees)
    place = target or project.outputs / asked.slug
    print(f"{_relative(place)}/: notebook.html, figures, results.json")
    return _say(untracked, ERROR) if untracked else 0


def _falsify(project: Project, asked: Arguments) -> int:
    from common.lab.rerun import falsified, stopped_breaking

    project.check_slug(asked.slug)
    record = falsified(project, asked.slug, asked.profile, _overrides(asked)).record(project)
    _print_report(project, record)
    stopped = stopped_breaking(project, record)
    for line in stopped:
        print(f"error: {line}", file=sys.stderr)
    upheld = [claim for claim in record.claims if claim.upheld]
    broken = sum(bool(claim.broken_by) for claim in upheld)
    print(f"{broken} of {len(upheld)} upheld claims break under a control or a placebo")
    return ERROR if stopped else 0


def _record(project: Project, asked: Arguments) -> int:
    from common.lab.forest import write_figure
    from common.lab.readme import write_page
    from common.lab.recording import check_recordable, commit_record, record_of_bare
    from common.lab.rerun import Whole, check_unmoved, reproduced

    project.check_slug(asked.slug)
    if asked.source:
        whole = Whole(*record_of_bare(project, asked.slug, Path(asked.source)))
    else:
        check_recordable(asked.profile, _overrides(asked))
        whole = reproduced(project, asked.slug, asked.profile)
    if asked.unmoved:
        check_unmoved(project, whole)
    record = commit_record(project, whole.composed, whole.arms, whole.known)
    write_figure(project, asked.slug, project.outputs / asked.slug)
    write_page(project, asked.slug)
    place = _relative(project.record(asked.slug, whole.composed.profile))
    _print_report(project, record)
    print(f"recorded in {place}")
    return _say(whole.untracked, ERROR) if whole.untracked else 0


def _refresh(project: Project, asked: Arguments) -> int:
    from common.lab.rerun import refresh

    slugs = [project.check_slug(slug) for slug in asked.slugs] or project.slugs
    failed = refresh(project, slugs, asked.launcher, bool(os.environ.get("ACCEPT")))
    for line in failed:
        _say(line, ERROR)
    return ERROR if failed else 0


def _confirm(project: Project, asked: Arguments) -> int:
    from common.lab.rerun import confirm

    named = [] if asked.slugs == ["all"] else asked.slugs
    if not asked.slugs:
        raise LabError(f"no paper is named: PAPER=all, or one of {', '.join(project.slugs)}")
    code = 0
    for slug in [project.check_slug(slug) for slug in named] or project.slugs:
        agrees, untracked = confirm(project, slug)
        print(f"{slug}: {agrees}")
        code = _say(f"{slug}: {untracked}", ERROR) if untracked else code
    return code


def _abuse(project: Project, asked: Arguments) -> int:
    from common.lab.abuse import abuse

    slugs = [project.check_slug(slug) for slug in asked.slugs] or project.slugs
    failed = 0
    for slug in slugs:
        for trial in abuse(project, slug):
            failed += trial.failed
            print(f"{slug} {trial.line}", file=sys.stderr if trial.failed else sys.stdout, flush=True)
    return ERROR if failed else 0


def _smoke(project: Project, asked: Arguments) -> int:
    from common.lab.smoke import outcome_table, smoke

    slugs = [project.check_slug(slug) for slug in asked.slugs] or project.slugs
    outcomes = smoke(project, slugs)
    _console().print(outcome_table(outcomes))
    return ERROR if any(outcome.error for outcome in outcomes) else 0


def _config(project: Project, asked: Arguments) -> int:
    from common.lab.config import compose
    from common.lab.files import write_atomically
    from common.lab.recording import bare_config

    composed = compose(project, asked.slug, asked.profile, _overrides(asked))
    place = Path(asked.to) if asked.to else project.outputs / f"{asked.slug}-{asked.profile}-config.json"
    write_atomically(place, json.dumps(bare_config(project, composed), indent=1) + "\n")
    print(f"wrote {_relative(place)}; where torch and numpy are, with papers/ and common/ beside:")
    print(f"  python -m common.lab.bare {asked.slug} {place.name} observations.json")
    print(f"and here: make record PAPER={asked.slug} FROM=observations.json")
    return 0


def _data(project: Project, asked: Arguments) -> int:
    from common.lab.card import Card

    project.check_slug(asked.slug)
    names = Card.load(project.card(asked.slug)).data
    if not names:
        print(f"{asked.slug} uses no data sets")
    registry = import_module("common.data") if names else None
    missing = 0
    for name in names:
        try:
            print(f"{name}: {registry.fetch(name, patient=True)}")  # type: ignore[union-attr]
        except Exception as error:
            missing += 1
            _say(" ".join(str(error).split()), ERROR)
    return ERROR if missing else 0


def _check(project: Project, asked: Arguments) -> int:
    from common.lab.recording import other_lock, problems

    slugs = [project.check_slug(slug) for slug in asked.slugs] or project.slugs
    found = [line for slug in slugs for line in problems(project, slug)]
    for line in found:
        _say(line, ERROR)
    if lock := other_lock(project, slugs):
        print(lock)
    if not found:
        print(f"{len(slugs)} papers: cards, configs, notebooks and records are in order")
    return ERROR if found else 0


def _extras(project: Project, asked: Arguments) -> int:
    from common.lab.card import Card

    slugs = [project.check_slug(asked.slug)] if asked.slug else project.slugs
    cards = [Card.load(project.card(slug)) for slug in slugs if project.card(slug).is_file()]
    print(" ".join(sorted({extra for card in cards for extra in card.extras})))
    return 0


def _serve(project: Project, asked: Arguments) -> int:
    from common.lab.servers import serve

    serve(project, asked.name, asked.port)
    return 0


def _optional(name: str) -> Command:
    return lambda project, asked: int(import_module(OPTIONAL[name][0]).run(project, asked))


def _overrides(asked: Arguments) -> tuple[str, ...]:
    from common.lab.config import split_overrides

    return tuple(split_overrides(asked.set))


def _print_report(project: Project, record: "Record") -> None:  # type: ignore[name-defined] # noqa: F821
    from common.lab.card import Card
    from common.lab.report import Report, stand_ins

    card = Card.load(project.card(record.paper))
    _console().print(Report(record, card, stand_ins(card)).table())


def _console() -> "Console":  # type: ignore[name-defined] # noqa: F821
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m common.lab", description="Reproduce papers and judge their claims."
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="name")

    def command(name: str, run: Command, about: str, paper: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.set_defaults(command=run)
        if paper:
            made.add_argument("slug", nargs="?", default="", help="the paper")
            made.add_argument("--profile", default="default", help="smoke, default, full or cuda")
            made.add_argument("--set", default="", help='Hydra overrides, "paper.requests=500 seeds=8"')
        return made

    reproduce = command("reproduce", _reproduce, "execute the notebook, judge the claims, track the run")
    reproduce.add_argument("--target", help="folder of the outputs (outputs/<slug>)")
    reproduce.add_argument("--quiet", action="store_true", help="no progress")
    command("falsify", _falsify, "run every arm; fails where a control that broke its claim no longer does")
    record = command("record", _record, "reproduce, falsify, and write the record that is committed")
    record.add_argument(
        "--from", dest="source", default="", help="observations of `python -m common.lab.bare`"
    )
    record.add_argument("--unmoved", action="store_true", help="refuse where a value is not as recorded")
    config = command("config", _config, "write the config.json that `python -m common.lab.bare` reads")
    config.add_argument("--to", default="", help="where to write it")
    command("data", _data, "fetch and verify a paper's data sets")
    command("extras", _extras, "the extras of pyproject.toml that a paper (or all) needs")
    for name, run, about in (
        ("smoke", _smoke, "every paper (or those named) under the smoke profile, in parallel"),
        ("check", _check, "whether cards, configs, notebooks and records are in order"),
        ("confirm", _confirm, "run papers (or all) beside their records on this machine"),
        ("abuse", _abuse, "odd values for every field of every paper's Config, under smoke"),
    ):
        command(name, run, about, paper=False).add_argument("slugs", nargs="*", help="papers (all)")
    again = command(
        "refresh", _refresh, "judge or record again what is stale (ACCEPT=1: moved values)", paper=False
    )
    again.add_argument("slugs", nargs="*", help="papers (all)")
    again.add_argument("--launcher", default="joblib", help="joblib (here), local or slurm")
    for name, about in (("ui", "the MLflow UI on loopback"), ("lab", "JupyterLab on loopback")):
        command(name, _serve, about, paper=False).add_argument("--port", type=int, help="another port")
    for name, (module, about) in OPTIONAL.items():
        made = command(name, _optional(name), about, paper=False)
        if chosen[:1] == [name]:
            import_module(module).arguments(made)
    return parser
