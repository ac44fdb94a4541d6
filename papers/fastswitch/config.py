"""What the experiment can be told: switches and sizes."""

from dataclasses import dataclass, field

from papers.fastswitch.conversations import MEAN_TURNS


@dataclass(frozen=True)
class Config:
    """Sizes and switches. Profiles change the sizes, a control changes switches."""

    deployments: list[str] = field(default_factory=lambda: ["llama-3-8b"])  # the claims read the first
    conversations: int = 300
    rate: float = -1.0  # conversations/s; -1: the deployment's
    mean_turns: float = MEAN_TURNS
    longest: int = 4096  # tokens of a conversation; live ones then have the 1,000 to 2,000 of the brief
    patterns: list[str] = field(default_factory=lambda: ["random", "markov"])
    frequency: float = -1.0  # priority updates an iteration; -1: the deployment's
    sweep: list[float] = field(default_factory=lambda: [0.0, 0.01])  # other frequencies, for the figure
    sweep_seeds: int = 3
    kv_tokens: int = 0  # of the GPU; 0: the deployment's
    # more of every copy call; claims read the first
    host_seconds: list[float] = field(default_factory=lambda: [0.0])
    free_calls: bool = False  # copy calls cost nothing but their bytes
    longest_group: int = 0  # blocks; 0: no limit
    keep_copies: bool = True  # False: host copies are invalid once they are swapped in
    wait_for_all: bool = False  # whoever allocates waits for every copy in flight
    replayed: int = 100_000  # operations on each allocator
    copied_tokens: int = (
        800  # of the long conversations whose KV a live server copies while it decodes; 0: none
    )
    copy_worker: bool = True  # a thread that copies; False: the live server does it itself
    answered_turns: float = 4.0  # of every conversation with the live server on average; 0 leaves it out
    pinned_blocks: int = 0  # on the device, of a real swap to pinned memory; 0 leaves it out
    trust_copies: bool = False  # of the live server: take any host copy for complete
