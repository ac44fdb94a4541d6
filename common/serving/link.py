"""A wire between instances."""


class Link:
    """A wire that carries one copy after another, each at a fixed cost of `seconds` and a cost by its size."""

    def __init__(self, bytes_per_s: float, seconds: float = 0.0) -> None:
        self.bytes_per_s = bytes_per_s
        self.seconds = seconds
        self._free = 0.0

    def send(self, now: float, size: float) -> float:
        """When a copy of `size` bytes asked for at `now` ends, seconds."""
        self._free = max(now, self._free) + self.seconds + size / self.bytes_per_s
        return self._free
