"""Several instances behind a dispatcher, and fleets whose instances start, drain and stop."""

from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Protocol

from common.serving.engine import Instance
from common.serving.loop import COPY, EventLoop
from common.serving.sequence import Sequence


class Dispatcher(Protocol):
    """Chooses the instance of a new request."""

    def choose(self, instances: Several[Instance], sequence: Sequence) -> Instance: ...


class RoundRobin:
    """Each instance in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, instances: Several[Instance], sequence: Sequence) -> Instance:
        instance = instances[self._next % len(instances)]
        self._next += 1
        return instance


class LeastLoad:
    """The instance with the fewest unfinished requests; the first of equals."""

    def choose(self, instances: Several[Instance], sequence: Sequence) -> Instance:
        if len(instances) == 1:
            return instances[0]
        return min(instances, key=Instance.unfinished)


class LeastTokens:
    """The instance whose requests, finished or not, have the fewest tokens in all; the first of equals.

    Lengths of answers are known to it, which no real dispatcher is.
    """

    def __init__(self) -> None:
        self._tokens: dict[Instance, int] = {}

    def choose(self, instances: Several[Instance], sequence: Sequence) -> Instance:
        chosen = min(instances, key=lambda one: self._tokens.get(one, 0))
        self._tokens[chosen] = self._tokens.get(chosen, 0) + sequence.prompt + sequence.output
        return chosen


class Replicas:
    """Equal instances that each serve a request from prompt to last token."""

    def __init__(self, instances: Several[Instance], dispatcher: Dispatcher) -> None:
        if not instances:
            raise ValueError("a system needs at least one instance")
        self.instances = instances
        self.dispatcher = dispatcher

    def submit(self, sequence: Sequence) -> None:
        self.dispatcher.choose(self.instances, sequence).submit(sequence)


class Fleet:
    """Instances that start, serve, drain and stop, and what they cost.

    serving: those that take requests, the one started last at the end. draining: those that take no more; they stop
    once `settle` finds them empty. build: makes an instance. start_seconds: from the order until it serves; an
    instance is paid for from its order to its stop.
    """

    def __init__(
        self, loop: EventLoop, build: Callable[[], Instance], first: int, start_seconds: float = 0.0
    ) -> None:
        if first < 1:
            raise ValueError(f"a fleet begins with at least one instance, not {first}")
        self.loop = loop
        self.build = build
        self.start_seconds = start_seconds
        self.serving = [build() for _ in range(first)]
        self.draining: list[Instance] = []
        self.stopped: list[Instance] = []
        self.starting = 0
        self.changes: list[tuple[float, int]] = [(0.0, first)]  # seconds, instances paid for since

    @property
    def running(self) -> list[Instance]:
        """Those that may hold requests: serving, then draining."""
        return self.serving + self.draining

    def start(self, instances: int) -> None:
        """Order more instances; they serve in `start_seconds`."""
        self.starting += instances
        self._paid(instances)
        for _ in range(instances):
            self.loop.at(self.loop.now + self.start_seconds, COPY, self._serve)

    def _serve(self, _: None) -> None:
        self.starting -= 1
        self.serving.append(self.build())

    def drain(self, instance: Instance) -> None:
        """Let `instance` take no more requests. Raises ValueError for the last one that does."""
        if len(self.serving) == 1:
            raise ValueError("the last serving instance cannot be drained; start another one first")
        self.serving.remove(instance)
        self.draining.append(instance)

    def serve_again(self, instance: Instance) -> None:
        """Let a draining instance take requests again, instead of starting another."""
        self.draining.remove(instance)
        self.serving.append(instance)

    def settle(self, held: Callable[[Instance], bool] = lambda instance: False) -> None:
        """Stop draining instances that are empty, unless somebody else still needs them (`held`)."""
        for instance in list(self.draining):
            if not instance.unfinished() and not held(instance):
                self.draining.remove(instance)
                self.stopped.append(instance)
                self._paid(-1)

    def _paid(self, change: int) -> None:
        self.changes.append((self.loop.now, self.changes[-1][1] + change))

    def average(self, until: float) -> float:
        """Instances paid for on average from the start to `until` seconds."""
        total = 0.0
        ends = [time for time, _ in self.changes[1:]] + [until]
        for (time, instances), end in zip(self.changes, ends, strict=True):
            total += instances * max(0.0, min(end, until) - time)
        return total / until
