"""Where things are: the repository, or any folder laid out like it (PAPERLAB_ROOT), with papers, conf and notebooks."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from common.lab.errors import LabError, nearest

PROFILES = ("smoke", "default", "full", "cuda")  # in this order where they are listed


@dataclass(frozen=True)
class Experiment:
    """What papers/<slug>/ offers: Config and check of config.py, run of experiment.py (imported when asked for)."""

    slug: str
    config: type[Any]  # the frozen dataclass Config
    check: Callable[[Any], None]  # ValueError where what one field allows another forbids

    @property
    def run(self) -> Callable[[Any, Any], Any]:
        """run(config, lab) -> Observations. LabError where experiment.py lacks it."""
        module = import_module(f"papers.{self.slug}.experiment")
        if not hasattr(module, "run"):
            raise LabError(f"papers/{self.slug}/experiment.py defines no run")
        return module.run  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Project:
    """A project folder. Nothing is read until asked for."""

    root: Path

    @classmethod
    def current(cls) -> "Project":
        """The folder PAPERLAB_ROOT, or the repository that this code stands in."""
        named = os.environ.get("PAPERLAB_ROOT")
        return cls(Path(named).resolve() if named else Path(__file__).resolve().parents[2])

    @property
    def lock(self) -> Path:
        return self.root / "requirements.lock"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    @property
    def slugs(self) -> list[str]:
        """All papers, sorted; one that has an experiment or a card is a paper."""
        found = {path.parent.name for path in (self.root / "papers").glob("*/experiment.py")}
        return sorted(found | {path.parent.name for path in (self.root / "papers").glob("*/paper.yaml")})

    def card(self, slug: str) -> Path:
        return self.root / "papers" / slug / "paper.yaml"

    def notebook(self, slug: str) -> Path:
        return self.root / "notebooks" / f"{slug}.ipynb"

    def record(self, slug: str, profile: str = "default") -> Path:
        """Where a record is committed: results.json, results.full.json, results.cuda.json."""
        return self.root / "papers" / slug / f"results{_of(profile)}.json"

    def observations(self, slug: str, profile: str = "default") -> Path:
        """Where the rows that a record rests on are committed."""
        return self.root / "papers" / slug / f"observations{_of(profile)}.json.gz"

    def confirmations(self, slug: str) -> Path:
        """Where every recording of a paper is kept, on whatever machine; the file only grows."""
        return self.root / "papers" / slug / "confirmations.json"

    def check_slug(self, slug: str) -> str:
        """The slug itself. LabError with the nearest ones where there is no such paper."""
        if slug in self.slugs:
            return slug
        if not slug:
            raise LabError(f"no paper is named: PAPER=<slug>, one of {', '.join(self.slugs)}")
        near = nearest(slug, self.slugs)
        known = near or f" There is: {', '.join(self.slugs) or 'none yet'}."
        raise LabError(f"unknown paper {slug!r}.{known}")

    def profiles(self, slug: str) -> list[str]:
        """The profiles that conf/paper/<slug>/ has."""
        found = {path.stem for path in (self.root / "conf" / "paper" / slug).glob("*.yaml")}
        return [name for name in PROFILES if name in found] + sorted(found - set(PROFILES))

    def check_profile(self, slug: str, profile: str) -> str:
        """The profile itself. LabError with those there are where there is no such profile."""
        known = self.profiles(slug)
        if profile not in known:
            there_is = ", ".join(known) or f"none in conf/paper/{slug}/"
            raise LabError(f"{slug} has no profile {profile!r}; it has: {there_is}")
        return profile

    def experiment(self, slug: str) -> Experiment:
        """Import papers/<slug>/config.py. LabError where a file is missing or lacks Config."""
        self.check_slug(slug)
        for name in ("config.py", "experiment.py"):
            if not (self.root / "papers" / slug / name).is_file():
                raise LabError(f"papers/{slug}/{name} is missing")
        if str(self.root) not in sys.path:
            sys.path.insert(0, str(self.root))
        module = import_module(f"papers.{slug}.config")
        if not hasattr(module, "Config"):
            raise LabError(f"papers/{slug}/config.py defines no Config")
        return Experiment(slug, module.Config, getattr(module, "check", lambda config: None))


def _of(profile: str) -> str:
    return "" if profile == "default" else f".{profile}"
