"""The arms of a reproduction: one run of the experiment as it stands, and one for each thing that is changed.

    ours            the config as composed
    <control>       a control or placebo of the card; `<placebo> x19` where a claim without chance takes 19 draws
    <setting>       a setting under which an explanation is tested
    <field>=<end>   a free constant at an end of its range

Each arm but ours observes only what its claims read. All arms of a command share what `lab.once` keeps.
"""

import gzip
import json
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.lab.bare import check_device
from common.lab.card import Card, Claim
from common.lab.config import Composed
from common.lab.effect import settings
from common.lab.errors import LabError
from common.lab.files import write_atomically
from common.lab.outcome import DRAWS
from common.lab.project import Project
from common.lab.runtime import Observations, Progress, Runtime

OURS = "ours"
DRAWN = f" x{DRAWS}"  # the end of the name of a placebo's arm that draws 19 times
Kind = Literal["control", "placebo", "setting", "free"]
CONTROLS: tuple[Kind, ...] = ("control",)  # what `make reproduce` runs beside ours
ALL: tuple[Kind, ...] = ("control", "placebo", "setting", "free")
Arms = Mapping[str, Observations]


@dataclass(frozen=True)
class Arm:
    """One run of the experiment with some fields set, for some claims."""

    name: str
    kind: Kind
    set: Mapping[str, Any]
    claims: tuple[Claim, ...]
    seeds: tuple[int, ...] = ()  # none: those of the profile
    where: str = ""  # that the card sets these fields

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for claim in self.claims for metric in claim.metrics))

    def composed(self, composed: Composed) -> Composed:
        """The config of this arm. LabError where the card sets a field that is not there or out of its bounds."""
        changed = composed.with_settings(
            {key.removeprefix("paper."): value for key, value in self.set.items()}, self.where
        )
        return changed.with_seeds(self.seeds) if self.seeds else changed


def arms_of(card: Card, seen: Observations | None = None, kinds: Collection[Kind] = ALL) -> list[Arm]:
    """The arms of a card; given ours, only for claims that were observed, with 19 draws where they know no chance."""
    observed = None if seen is None else set(seen.metrics)
    claims = [claim for claim in card.claims if observed is None or claim.metric in observed]
    certain = {claim.id for claim in claims if seen is not None and _certain(claim, seen)}
    place = f"papers/{card.slug}/paper.yaml"
    arms = []
    for name, control in card.controls.items():
        where = f"{place}: controls.{name}.set"
        theirs = tuple(claim for claim in claims if name in (claim.control, *claim.also))
        arms.append(Arm(name, "control", control.set, theirs, where=where))
        choosing = [claim for claim in claims if claim.placebo == name]
        random = tuple(claim for claim in choosing if claim.id not in certain and claim not in theirs)
        drawn = tuple(claim for claim in choosing if claim.id in certain)
        arms.append(Arm(name, "placebo", control.set, random, where=where))
        arms.append(Arm(name + DRAWN, "placebo", control.set, drawn, tuple(range(DRAWS)), where))
    for name, setting in card.settings.items():
        theirs = tuple(claim for claim in claims if claim.revived_by == name)
        arms.append(Arm(name, "setting", setting.set, theirs, where=f"{place}: settings.{name}.set"))
    for field, end in {(f, e): None for claim in claims for f, ends in claim.free.items() for e in ends}:
        theirs = tuple(claim for claim in claims if end in claim.free.get(field, ()))
        value = int(end) if end == int(end) else end  # a field of whole numbers takes no 2.0
        arms.append(Arm(end_name(field, end), "free", {field: value}, theirs, where=f"{place}: free.{field}"))
    return [arm for arm in _merged([arm for arm in arms if arm.claims]) if arm.kind in kinds]


def _merged(arms: list[Arm]) -> list[Arm]:
    """One arm a name: what is a control of one claim and a placebo of another runs once."""
    by_name: dict[str, Arm] = {}
    for arm in arms:
        first = by_name.get(arm.name)
        claims = arm.claims if first is None else (*first.claims, *arm.claims)
        kind = arm.kind if first is None else first.kind
        by_name[arm.name] = Arm(arm.name, kind, arm.set, claims, arm.seeds, arm.where)
    return list(by_name.values())


def _certain(claim: Claim, seen: Observations) -> bool:
    return all(sample.deterministic for sample in settings(claim, seen))


def end_name(field: str, end: float) -> str:
    """The name of the arm of a free field at an end of its range."""
    return f"{field}={end:g}"


def run_arms(
    project: Project,
    card: Card,
    composed: Composed,
    seen: Observations,
    kinds: Collection[Kind],
    progress: Progress | None = None,
    kept: dict[Hashable, Any] | None = None,
) -> dict[str, Observations]:
    """Run the arms of these kinds for the claims that ours observed; observations by the arm's name."""
    check_device(composed.device)
    run = project.experiment(card.slug).run
    kept = {} if kept is None else kept
    made = {}
    arms = arms_of(card, seen, kinds)
    for arm in arms if progress is None else progress(arms, "arms", len(arms)):
        changed = arm.composed(composed)
        runtime = Runtime(changed.seeds, changed.device, progress, wanted=arm.metrics, kept=kept)
        try:
            made[arm.name] = run(changed.config, runtime)
        except LabError:
            raise
        except Exception as error:
            error.add_note(f"arm {arm.name} ({', '.join(f'{k}={v}' for k, v in arm.set.items())})")
            raise
    return made


def save_arms(path: Path, arms: Arms) -> None:
    """Write the rows of all arms, compressed, whole or not at all; the same rows give the same bytes."""
    text = json.dumps({name: json.loads(seen.to_json()) for name, seen in arms.items()}, allow_nan=False)
    write_atomically(path, gzip.compress(text.encode(), mtime=0))


def load_arms(path: Path) -> dict[str, Observations]:
    """Read what `save_arms` wrote. LabError where the file is missing or something else."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        return {name: Observations.from_json(json.dumps(rows)) for name, rows in content.items()}
    except OSError as error:
        raise LabError(f"{path}: {error.strerror or 'is no gzip file'}") from error
    except (ValueError, EOFError, AttributeError) as error:
        raise LabError(f"{path}: no observations of arms: {error}") from error
