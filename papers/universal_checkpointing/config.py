"""Switches and sizes of a run. A control changes a switch, profiles change sizes. A layout: [TP, PP, DP, ZeRO]."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length

# of scenarios.py, all of them
SCENARIOS = ("DP 4 to 2", "switch to ZeRO-3", "TP 2 to PP 2", "experts, TP 2 to 1")
CASES = ("gpt", "grouped", "experts", "half the nodes", "trained apart")
TARGETS = (
    (1, 1, 1, 0), (2, 1, 1, 0), (1, 4, 1, 0), (1, 1, 4, 1), (4, 1, 1, 0), (1, 2, 2, 2), (1, 1, 3, 3), (2, 2, 2, 3),
)  # fmt: skip
SOURCES = ((2, 2, 2, 1), (1, 1, 1, 0), (1, 4, 1, 0), (1, 1, 3, 3))
MOST_RANKS = 8
Layouts = Annotated[list[list[int]], Length(1, 24), At(0, MOST_RANKS)]
One = Annotated[list[int], Length(4, 4, repeats=True), At(0, MOST_RANKS)]
NODE = "Section 6: 5 GB/s on NVIDIA, 3 GB/s on AMD nodes; Table 3 does not say which"
PROCESS = "torch.save and torch.load on one core; the paper gives no rate, each run measures its own (packing_gb_per_s)"
MERGING = "2 is ds_to_universal.py's default; the paper does not say how many ran; 4: as many as extract"
EXTRACTING = "4 is ds_to_universal.py's default; the paper does not say how many ran; 8: one a GPU"


@dataclass(frozen=True)
class Config:
    """What is trained, reconfigured and timed, and which part of the method is switched off."""

    # The method. False, or another word, is a mistake or a plain alternative.
    optimiser: bool = True  # False: weights alone are resumed
    fused: bool = True  # False: fused matrices are concatenated as if they were one (no Shard-NC)
    row_parallel: bool = True  # False: row-parallel matrices are concatenated along rows
    strip_pad: bool = True  # False: what ZeRO and the vocabulary added stays
    average: bool = True  # False: copies that were updated apart are taken for replicas
    lazy: bool = True  # False: a conversion even where the layout is the same
    distributed_save: bool = True  # False: saving gathers everything on one rank
    # Whether nodes share a conversion, cores of a node share it, both, or one process does it all.
    parallel: Annotated[str, Choice("nested", "nodes", "cores", "none")] = "nested"
    # Parameters to workers: the largest first to who has least, in turn, or to anyone (a draw a seed).
    assignment: Annotated[str, Choice("balanced", "in order", "random")] = "balanced"
    row_reads: bool = True  # False: every rank reads its parameters' files from end to end
    handed_around: bool = True  # False: data ranks read all that the others read in the bypass, too
    same_layout: bool = False  # True: nothing is reconfigured in any scenario

    # What is trained: a decoder of grouped queries, gated MLP, tied embeddings.
    hidden: Annotated[int, At(16, 1024)] = 64
    layers: Annotated[int, At(1, 32)] = 4
    heads: Annotated[int, Choice(4, 8, 16)] = 8
    kv_heads: Annotated[int, Choice(2, 4, 8, 16)] = 4
    mlp: Annotated[int, At(16, 4096)] = 128
    context: Annotated[int, At(4, 512)] = 16
    rows: Annotated[int, At(12, 96)] = (
        12  # of a step; multiples of 12, which 1, 2, 3, 4, 6 data ranks can share
    )
    rate: Annotated[float, At(0, 0.1, above=True)] = 1e-2
    dtype: Annotated[str, Choice("float32", "float64")] = "float32"

    # Who resumes whom.
    steps: Annotated[int, At(2, 5000)] = 100  # before the checkpoint
    further: Annotated[int, At(1, 1000)] = 50  # after it
    source: One = field(default_factory=lambda: [2, 2, 2, 1])
    targets: Layouts = field(default_factory=lambda: [list(one) for one in TARGETS])
    sources: Layouts = field(default_factory=lambda: [list(one) for one in SOURCES])
    target: One = field(default_factory=lambda: [2, 2, 1, 0])
    cases: Annotated[list[str], Length(1), Choice(*CASES)] = field(default_factory=lambda: list(CASES))
    scenarios: Annotated[list[str], Length(1), Choice(*SCENARIOS)] = field(
        default_factory=lambda: list(SCENARIOS)
    )
    short_steps: Annotated[int, At(2, 2000)] = 20  # before and after the checkpoint, of cases and scenarios
    short_further: Annotated[int, At(1, 1000)] = 10

    # What is saved, converted and loaded on throttled storage.
    stored_hidden: Annotated[int, At(64, 1024)] = 256
    stored_layers: Annotated[int, At(1, 32)] = 6
    loaded_layers: Annotated[int, At(1, 32)] = 1  # of the state that several data ranks load
    node_rate: Annotated[float, At(20, 2000)] = 80.0  # MB/s of each node's storage, saving and converting
    shared_rate: Annotated[float, At(20, 2000)] = 200.0  # MB/s of storage that four ranks share, loading
    bypass_rate: Annotated[float, At(20, 2000)] = 50.0  # MB/s of storage that all data ranks share
    converters: Annotated[list[int], Length(1), At(2, MOST_RANKS)] = field(default_factory=lambda: [2, 4])
    data_ranks: Annotated[list[int], Length(1), Choice(1, 2, 3, 4, 6, 8)] = field(
        default_factory=lambda: [2, 4, 8]
    )

    # Minutes at 7B to 1T: storage of a node, packing on one core, processes of a node.
    node_gb_per_s: Annotated[float, Inferred(3.0, 5.0, NODE)] = 5.0
    process_gb_per_s: Annotated[float, Inferred(0.5, 2.0, PROCESS)] = 1.0
    merging: Annotated[int, Inferred(2, 4, MERGING)] = 2
    extracting: Annotated[int, Inferred(4, 8, EXTRACTING)] = 4


def check(config: Config) -> None:
    """ValueError in one line for sizes that don't fit, and for switches that a run would ignore."""
    if config.hidden % config.heads or config.heads % config.kv_heads:
        sizes = f"{config.hidden} channels, {config.heads} heads and {config.kv_heads} key heads"
        raise ValueError(f"hidden, heads, kv_heads: {sizes} don't divide")
    if config.mlp % 2:
        raise ValueError(
            f"mlp: {config.mlp} channels can't be shared by the two tensor ranks of the scenarios"
        )
    if config.rows % 12:
        raise ValueError(
            f"rows: {config.rows} is no multiple of 12, which 2, 3, 4 and 6 data ranks can share"
        )
    if config.stored_hidden % 8:
        raise ValueError(f"stored_hidden: {config.stored_hidden} channels don't divide among 8 heads")
    for name, layouts, other, one in (
        ("targets", config.targets, "source", config.source),
        ("sources", config.sources, "target", config.target),
    ):
        check_layout(config, other, one)
        for layout in layouts:
            check_layout(config, name, layout)
        if one in layouts:
            raise ValueError(f"{name}: {one} is the {other} too, so that nothing changes")
        if all(map(is_slow, layouts)):
            raise ValueError(f"{name}: none of {layouts} trains on; name one below TP 4 and ZeRO-3")
    if not config.fused and not config.row_parallel:
        raise ValueError("row_parallel: one mistake at a time; fused is off already")
    if config.parallel == "none" and config.assignment != "balanced":
        raise ValueError(f"assignment: {config.assignment!r} means nothing with parallel=none; leave it")


def is_slow(layout: list[int]) -> bool:
    """Whether a step takes up to ten times as long here (many collectives, or of many ranks): it only loads."""
    return layout[0] > 2 or layout[3] == 3


def check_layout(config: Config, name: str, layout: list[int]) -> None:
    """ValueError where a layout is none, or not one that the decoder, the rows and this machine can have."""
    if len(layout) != 4 or min(layout[:3]) < 1 or layout[3] > 3:
        form = "[TP, PP, DP, ZeRO] such as [2, 2, 2, 1]: degrees from 1, ZeRO 0 to 3"
        raise ValueError(f"{name}: {layout} is no layout; it is {form}")
    tensor, pipeline, data, zero = layout
    if tensor * pipeline * data > MOST_RANKS:
        raise ValueError(f"{name}: {layout} takes {tensor * pipeline * data} processes; at most {MOST_RANKS}")
    if config.kv_heads % tensor or config.mlp % tensor:
        shared = f"{config.kv_heads} key heads and {config.mlp} channels"
        raise ValueError(f"{name}: {tensor} tensor ranks can't share {shared}")
    if pipeline > config.layers:
        raise ValueError(f"{name}: {config.layers} layers can't fill {pipeline} stages")
    if config.rows % data:
        raise ValueError(f"{name}: {data} data ranks can't share {config.rows} rows")
    if zero and data == 1:
        raise ValueError(f"{name}: {layout}: ZeRO splits over data ranks, and there is one; say ZeRO 0")
