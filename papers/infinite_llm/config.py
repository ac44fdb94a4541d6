"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes one switch; profiles change the sizes."""

    model: str = "llama-2-7b"
    gpus: int = 32
    requests: int = 3000  # of each run, all there at once
    # longest prompts of the traces that an instance alone can serve, and of those that it cannot
    short: list[int] = field(default_factory=lambda: [60_000, 100_000])
    long: list[int] = field(default_factory=lambda: [200_000])
    sizes: list[int] = field(
        default_factory=lambda: [1000, 6000]
    )  # other numbers of requests, on the last short trace
    spreads: list[float] = field(
        default_factory=lambda: [0.0, 0.5]
    )  # of lengths, beside 1 as drawn; see traces.py
    spread: float = 1.0  # of all traces
    lends: bool = True  # False: the instances keep their memory to themselves
    one_instance: bool = False  # True: all GPUs form one instance in place of ours
    cancels: bool = True  # False: debts along cycles stay
    prefills: bool = False  # True: prompts cost time too
    moved_per_step: int = 16  # tokens that may leave a request in a decode step
    instances: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32])  # of the longest context
    processes: int = 4
    contexts: list[int] = field(default_factory=lambda: [1024, 4096, 16_384])  # tokens, of the real attention
    method: str = "dist"  # of the real attention; a name of processes.METHODS
    merging: bool = True  # False: partial results are averaged
    remote: float = 0.75  # share of a real request's prompt that other processes hold
    loan_requests: int = 100  # of each borrower of the real protocol
    refuses: bool = True  # False: a creditor grants what the ledger promised
    moved_tokens: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])  # a decode step
    link_bytes_per_s: float = 0.0  # of the moves; 0: NVLink
