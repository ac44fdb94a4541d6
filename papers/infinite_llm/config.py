"""Sizes and switches of a run. A control changes one switch; the profiles change the sizes."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length

HELD_ALONE = (
    115_000  # tokens of a prompt that an instance of LLaMA-2-7B surely holds with its answer (of 121,750)
)


@dataclass(frozen=True)
class Config:
    """What is compared, on how much, and which part of the method is switched off."""

    gpus: Annotated[int, Choice(8, 16, 32)] = 32  # one an instance, in nodes of eight
    requests: Annotated[int, At(50, 20_000)] = 1000  # of each run, all there at once
    # Longest prompts of the traces that an instance alone can serve, and of the one that it cannot.
    short: Annotated[list[int], Length(1, 4), At(10_000, HELD_ALONE)] = field(
        default_factory=lambda: [60_000, 100_000]
    )
    long: Annotated[list[int], Length(1, 4), At(130_000, 2_000_000)] = field(
        default_factory=lambda: [200_000]
    )
    long_share: Annotated[
        float, Inferred(0.05, 0.2, "share of long prompts; the paper's traces are unpublished")
    ] = 0.1
    shortest_long: Annotated[
        int, Inferred(2_000, 9_000, "shortest of the long prompts; the paper's traces are unpublished")
    ] = 8_000
    instances: Annotated[list[int], Length(1), Choice(2, 4, 8, 16, 32)] = field(
        default_factory=lambda: [2, 4, 8, 16, 32]
    )  # of the longest context

    prompts_cost: bool = True  # False: all requests arrive prefilled

    # The method, and what of it is switched off.
    lends: bool = True  # False: an instance refuses whatever it is asked for
    # `fetch`: keys and values come home in every step, instead of the query going out.
    attends: Annotated[str, Choice("remote", "fetch")] = "remote"
    # `random`: any instance that can lend, and any order of debtors, one draw a seed.
    creditors: Annotated[str, Choice("planned", "random")] = "planned"
    cancels: bool = True  # False: debts along cycles stay
    moved_per_step: Annotated[int, At(0, 4096)] = 16  # tokens that may leave a request in a decode step
    most_parts: Annotated[int, At(1, 31)] = 31  # creditors that one request may lie at
    most_lent: Annotated[
        float, Inferred(0.5, 0.95, "v1 names a cap on what is lent as a hyper-parameter, without a value")
    ] = 0.8
    period: Annotated[float, Inferred(0.125, 1.0, "v2 plans periodically and names no period")] = 0.25  # s
    # From this batch on an instance borrows no more. Dealt out in turn, 1,000 requests give 32 instances at most 32
    # each, so that from 32 on it never binds and decides nothing.
    batch: Annotated[int, Inferred(32, 256, "v2's beta, without a value")] = 64
    busy: Annotated[float, Inferred(0.7, 0.95, "v2's mu, without a value")] = 0.8  # then it lends no more

    # The real processes.
    processes: Annotated[int, At(2, 8)] = 4
    contexts: Annotated[list[int], Length(1), At(64, 131_072)] = field(
        default_factory=lambda: [1024, 4096, 16_384]
    )
    merging: bool = True  # False: partial results are averaged
    remote: Annotated[float, At(0.1, 0.95)] = 0.75  # share of a real prompt that other processes hold
    loan_requests: Annotated[int, At(10, 10_000)] = 100  # of each borrower of the real protocol
    refuses: bool = True  # False: a creditor grants what the ledger promised


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    for name in ("short", "long"):
        if sorted(getattr(config, name)) != getattr(config, name):
            raise ValueError(f"{name}: {getattr(config, name)} is not in rising order")
    if not config.lends and config.creditors == "random":
        raise ValueError("lends: nobody lends, so creditors: random says nothing; set one of them")
    if config.requests * config.long_share < 3:
        raise ValueError(f"requests: {config.requests} hold fewer than three long ones; raise them")
    if max(config.long) > 1000 * 90 * config.gpus * 0.5:
        raise ValueError(f"long: {max(config.long)} tokens may not fit {config.gpus} instances; raise gpus")
    if min(config.contexts) < 8 * config.processes:
        raise ValueError(f"contexts: {min(config.contexts)} are too few for {config.processes} processes")
    if 32 not in config.instances:
        raise ValueError(
            f"instances: {config.instances} lack 32, where the paper's longest context is; add it"
        )
