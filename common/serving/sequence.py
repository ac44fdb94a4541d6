"""A request on its way through a system, and the set of sequences that decode together."""

from heapq import heappop, heappush


class Sequence:
    """The state of one request. Tokens are counted; `context` is stale while the sequence decodes.

    goal: KV tokens that prefill must store before the next token comes out: the prompt, and after a
    preemption by recomputation also what had been generated. stop: generated tokens at which the sequence
    leaves its batch (its output length; request-level batching holds it for its longest companion).
    """

    __slots__ = (
        "arrival",
        "base",
        "blocks",
        "context",
        "finish",
        "finish_step",
        "first_token",
        "generated",
        "goal",
        "index",
        "output",
        "preemptions",
        "priority",
        "prompt",
        "spans",
        "started",
        "stop",
        "ticket",
    )

    def __init__(self, index: int, arrival: float, prompt: int, output: int) -> None:
        self.index = index
        self.arrival = arrival
        self.prompt = prompt
        self.output = output
        self.stop = output
        self.goal = prompt
        self.context = 0  # KV tokens stored
        self.generated = 0
        self.blocks = 0  # KV blocks held; stale while decoding in paged memory
        self.priority = 0  # higher goes first, where a policy looks at it; may change at any time
        self.started = -1.0  # when its first iteration began
        self.first_token = -1.0
        self.finish = -1.0
        self.preemptions = 0
        self.base = 0  # context minus the group's step count, while decoding
        self.finish_step = 0
        self.ticket: object = None  # its entry on the group's heap, while decoding
        self.spans: list[tuple[object, int, int]] = []  # (token log, first step, past-last step)


class DecodeGroup:
    """Sequences that gain one token each per step, advanced many steps at once.

    Sums and heaps replace the walk over members: a member's context is its base plus the group's step count,
    the next to finish stands on a heap, and `crossings[s % block]` counts the members that need a new KV block
    for step s.
    """

    def __init__(self, block_tokens: int, grows: bool) -> None:
        self.members: dict[Sequence, None] = {}  # in the order of joining
        self.context = 0  # KV tokens stored by all members
        self.step = 0
        self._block = block_tokens
        self._grows = grows
        self._crossings = [0] * (2 * block_tokens)  # twice, so that any window of one turn is one slice
        self._heap: list[tuple[int, int, Sequence]] = []
        self._joined = 0

    def __len__(self) -> int:
        return len(self.members)

    def join(self, sequence: Sequence) -> None:
        """Let a prefilled sequence decode; its context and generated tokens are up to date."""
        step = self.step
        self.members[sequence] = None
        self.context += sequence.context
        sequence.base = sequence.context - step
        sequence.finish_step = step + sequence.stop - sequence.generated
        self._joined += 1
        sequence.ticket = entry = (sequence.finish_step, self._joined, sequence)
        heappush(self._heap, entry)
        if self._grows:
            self._cross(sequence, 1)

    def leave(self, sequence: Sequence) -> None:
        """Take a member out and bring its own counts up to date."""
        if self._grows:
            self._cross(sequence, -1)
        del self.members[sequence]
        sequence.context = sequence.base + self.step
        sequence.generated = sequence.stop - (sequence.finish_step - self.step)
        if self._grows:
            sequence.blocks = -(-sequence.context // self._block)
        sequence.ticket = None
        self.context -= sequence.context

    def _cross(self, sequence: Sequence, change: int) -> None:
        residue = -sequence.base % self._block
        self._crossings[residue] += change
        self._crossings[residue + self._block] += change

    def last(self) -> Sequence:
        """The member that joined last."""
        return next(reversed(self.members))

    def steps_to_finish(self) -> int:
        """Steps until the next member is done."""
        heap = self._heap
        while heap[0][2].ticket is not heap[0]:  # left the group since
            heappop(heap)
        return heap[0][0] - self.step

    def growth(self, steps: int = 1) -> int:
        """KV blocks that the next `steps` steps take in all."""
        if not self._grows:
            return 0
        turns, rest = divmod(steps, self._block)
        if rest == 1:
            return turns * len(self.members) + self._crossings[self.step % self._block]
        start = self.step % self._block
        return turns * len(self.members) + sum(self._crossings[start : start + rest])

    def fits(self, free: int, steps: int = 1) -> bool:
        """Whether the growth of the next `steps` steps stays within `free` blocks."""
        at_most = (steps // self._block + 1) * len(self.members)
        return at_most <= free or self.growth(steps) <= free

    def steps_that_fit(self, free: int, steps: int) -> int:
        """The most steps, up to `steps`, whose growth stays within `free` blocks."""
        if self.fits(free, steps):
            return steps
        fit = free // len(self.members) * self._block  # a turn takes one block a member
        free -= self.growth(fit)
        while (crossing := self._crossings[(self.step + fit) % self._block]) <= free:
            free -= crossing
            fit += 1
        return fit

    def advance(self, steps: int) -> list[Sequence]:
        """Give every member `steps` tokens; return the finished ones, taken out, in the order of joining."""
        self.step += steps
        self.context += steps * len(self.members)
        finished = []
        heap = self._heap
        while heap and heap[0][0] <= self.step:
            entry = heappop(heap)
            sequence = entry[2]
            if sequence.ticket is entry:
                self.leave(sequence)
                finished.append(sequence)
        return finished
