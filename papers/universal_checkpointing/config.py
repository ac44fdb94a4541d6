"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

SCENARIOS = (  # of scenarios.py, all of them
    "DP 4 to 2",
    "switch to ZeRO-3",
    "TP 2 to PP 2",
    "experts, TP 2 to 1",
)


@dataclass(frozen=True)
class Config:
    """Sizes and switches. A control changes switches; profiles change the sizes. A layout: [TP, PP, DP, ZeRO]."""

    # switches of the mechanism
    optimiser: bool = True  # False: weights alone are resumed
    fused: bool = True  # False: fused matrices are concatenated as if they were one (no Shard-NC)
    row_parallel: bool = True  # False: row-parallel matrices are concatenated along rows
    strip_pad: bool = True  # False: what ZeRO and the vocabulary added stays
    average: bool = True  # False: copies that were updated apart are taken for replicas
    lazy: bool = True  # False: a conversion even where the layout is the same
    distributed_save: bool = True  # False: saving gathers everything on one rank
    balanced: bool = True  # False: parameters go to workers at random
    nested: bool = True  # False: one process converts, at any size
    whole_reads: bool = False  # True: every rank reads its parameters' files from end to end
    same_layout: bool = False  # True: nothing is reconfigured in any scenario
    # sizes
    hidden: int = 64
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    mlp: int = 128
    context: int = 16
    rows: int = 12  # of a step: data ranks may be 1, 2, 3, 4, 6
    rate: float = 1e-2
    steps: int = 100  # before the checkpoint
    further: int = 50  # after it
    slow_steps: int = 8  # after it, under ZeRO-3 or TP 4, whose steps take up to ten times as long here
    source: list[int] = field(default_factory=lambda: [2, 2, 2, 1])
    targets: list[list[int]] = field(
        default_factory=lambda: [
            [1, 1, 1, 0], [2, 1, 1, 0], [1, 4, 1, 0], [1, 1, 4, 1], [4, 1, 1, 0],
            [1, 2, 2, 2], [1, 1, 3, 3], [2, 2, 2, 3],
        ]
    )  # fmt: skip
    sources: list[list[int]] = field(
        default_factory=lambda: [[1, 1, 1, 0], [1, 1, 4, 1], [4, 1, 1, 0], [1, 4, 1, 0], [1, 1, 2, 3]]
    )
    target: list[int] = field(default_factory=lambda: [2, 2, 1, 0])
    sources_steps: int = 20
    sources_further: int = 10
    models: list[str] = field(default_factory=lambda: ["gpt", "grouped", "experts", "half_the_nodes"])
    models_steps: int = 20
    models_further: int = 10
    scenarios_steps: int = 40
    scenarios: list[str] = field(default_factory=lambda: list(SCENARIOS))
    tensor_dcp: bool = True  # also show DCP with DTensors over tensor ranks
    stored_hidden: int = 256  # of the state that is saved, converted and loaded on throttled storage
    stored_layers: int = 8
    loaded_layers: int = 2  # of the state that several data ranks load
    node_rate: float = 50.0  # MB/s of each node's storage, saving and converting
    shared_rate: float = 100.0  # MB/s of storage that all ranks share, loading
    bypass_rate: float = 50.0  # the same with a fast network beside it
    converters: list[int] = field(default_factory=lambda: [1, 2, 4])
    data_ranks: list[int] = field(default_factory=lambda: [2, 4, 8])
