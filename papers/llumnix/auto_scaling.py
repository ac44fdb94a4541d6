"""Auto-scaling: the freeness of the whole fleet stays in a band (Section 4.4.3; need_scale of the authors' code)."""

from collections.abc import Callable
from dataclasses import dataclass

from common.serving.cluster import Fleet
from common.serving.engine import Instance
from papers.llumnix.freeness import Load, Rules, dispatch_freeness, load_of, migration_freeness


@dataclass(frozen=True)
class Scaling:
    """The band is [low, low + width], in blocks a request (defaults: the artifact's).

    check_seconds: between two decisions. least, most: instances.
    """

    low: float = 10.0
    width: float = 50.0
    check_seconds: float = 10.0
    least: int = 1
    most: int = 16


def scale(fleet: Fleet, rules: Scaling, held: Callable[[Instance], bool]) -> None:
    """Order instances until the fleet is free enough, or drain the newest one where it would stay so without.

    held: whether a migration still needs a draining instance that is empty.
    """
    fleet.settle(held)
    if fleet.starting:
        return
    loads = [load_of(one, False) for one in fleet.serving]
    if cluster_freeness(loads, dispatch=True) < rules.low:
        if fleet.draining:
            fleet.serve_again(fleet.draining[-1])
        else:
            fleet.start(instances_needed(loads, rules))
    elif not fleet.draining and len(fleet.serving) > rules.least:
        last = loads[-1]
        gone = last._replace(total=0, free=last.free - last.total, reserve=0)
        if cluster_freeness([*loads[:-1], gone], dispatch=False) > rules.low + rules.width:
            fleet.drain(fleet.serving[-1])


def instances_needed(loads: list[Load], rules: Scaling) -> int:
    """How many empty instances bring the fleet's freeness back to the band, as far as its limit allows."""
    loads = list(loads)
    empty = Load(loads[0].total, loads[0].total, loads[0].reserve)
    started = 0
    while len(loads) < rules.most and cluster_freeness(loads, dispatch=True) < rules.low:
        loads.append(empty)
        started += 1
    return started


def cluster_freeness(loads: list[Load], dispatch: bool) -> float:
    """Freeness of a whole fleet seen as one instance; priorities and draining are left out."""
    whole = Load(*(sum(one) for one in list(zip(*loads, strict=True))[:6]))
    rules = Rules(target=None)
    return dispatch_freeness(whole, rules) if dispatch else migration_freeness(whole, rules)
