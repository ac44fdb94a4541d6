"""Several instances behind a dispatcher."""

from collections.abc import Sequence as Several
from typing import Protocol

from common.serving.engine import Instance
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


class Replicas:
    """Equal instances that each serve a request from prompt to last token."""

    def __init__(self, instances: Several[Instance], dispatcher: Dispatcher) -> None:
        if not instances:
            raise ValueError("a system needs at least one instance")
        self.instances = instances
        self.dispatcher = dispatcher

    def submit(self, sequence: Sequence) -> None:
        self.dispatcher.choose(self.instances, sequence).submit(sequence)
