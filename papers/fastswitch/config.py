"""What the experiment can be told: switches and sizes, each with its bounds."""

from dataclasses import dataclass, field
from typing import Annotated

from common.lab.bounds import At, Choice, Inferred, Length


@dataclass(frozen=True)
class Config:
    """Sizes and switches. Profiles change the sizes, a control changes switches."""

    deployment: Annotated[str, Choice("llama-3-8b", "qwen-32b")] = "llama-3-8b"
    conversations: Annotated[int, At(10, 5000)] = 300
    # Conversations/s, a turn a second in all (the paper's request rate, read as turns): the brief wants 10 to 30% of
    # vLLM's live requests swapped out on average, which 0.45 to 0.55 give.
    rate: Annotated[float, At(0.01, 10)] = 0.5
    mean_turns: Annotated[float, At(1, 20)] = 5.5  # of the paper's Multi-Round ShareGPT
    # Tokens of a conversation, of which most have one to two thousand.
    longest: Annotated[int, At(512, 16_384)] = 4096
    patterns: Annotated[list[str], Length(1), Choice("random", "markov")] = field(
        default_factory=lambda: ["random", "markov"]
    )
    frequency: Annotated[float, At(0, 1)] = 0.04  # priority updates an iteration (paper); 0: never
    kept_priority: Annotated[float, Inferred(0.0, 0.95, "Markov: the brief's completion, no source")] = 0.8
    zipf_exponent: Annotated[float, Inferred(1.2, 4.0, "of Markov's new priorities; no source")] = 2.0
    host_seconds: Annotated[float, Inferred(0.0, 1e-5, "a Python loop's share of a call; C++ has none")] = 0.0
    # Other frequencies, for the figure.
    sweep: Annotated[list[float], Length(0), At(0, 1)] = field(default_factory=lambda: [0.0, 0.01])
    sweep_seeds: Annotated[int, At(1, 100)] = 3
    kv_tokens: Annotated[int, At(0, 10_000_000)] = 0  # of the GPU; 0: the deployment's
    free_calls: bool = False  # copy calls cost nothing but their bytes
    longest_group: Annotated[int, At(0, 100_000)] = 0  # blocks; 0: no limit
    keep_copies: bool = True  # False: host copies are freed once they are swapped in
    kept_tokens: Annotated[int, At(0, 1_000_000)] = 1_000_000  # of a copy that stay valid once it was read
    wait_for_all: bool = False  # whoever allocates waits for every copy in flight
    # Of the long conversations whose KV a live server copies while it decodes; 0: none.
    copied_tokens: Annotated[int, At(0, 1500)] = 800
    copy_worker: bool = True  # a thread that copies; False: the live server does it itself
    instant_copies: bool = False  # of that server: copies move nothing
    answered_turns: Annotated[float, At(0, 20)] = 4.0  # of every live conversation, mean; 0 leaves it out
    trust_copies: bool = False  # of the live server: take any host copy for complete


def check(config: Config) -> None:
    """ValueError in one line for combinations that cannot run, or of which a run would ignore a part."""
    for name, values in (("frequency", [config.frequency]), ("sweep", config.sweep)):
        for value in values:
            if value and abs(1 / value - round(1 / value)) > 0.01 / value:
                raise ValueError(
                    f"{name}: {value} is no update every so many iterations; 1 over a whole number is"
                )
    if 0 < config.answered_turns < 1:
        raise ValueError(
            f"answered_turns: {config.answered_turns} is below one turn; 1 or more, or 0 for none"
        )
    if 0 < config.copied_tokens < 100:
        raise ValueError(
            f"copied_tokens: {config.copied_tokens} are too few to copy; 100 or more, or 0 for none"
        )
    if 0 < config.kv_tokens < 2 * config.longest:
        raise ValueError(
            f"kv_tokens: {config.kv_tokens} hold no two conversations of {config.longest}; raise them"
        )
    if not config.keep_copies and config.kept_tokens != 1_000_000:
        raise ValueError("kept_tokens: means nothing with keep_copies=false; leave it")
    if config.instant_copies and not config.copied_tokens:
        raise ValueError("instant_copies: means nothing with copied_tokens=0; leave it")
    if config.free_calls and config.host_seconds:
        raise ValueError("host_seconds: means nothing with free_calls=true; leave it")
    if config.trust_copies and not config.answered_turns:
        raise ValueError("trust_copies: means nothing with answered_turns=0; leave it")
    if not config.copy_worker and not config.copied_tokens:
        raise ValueError("copy_worker: means nothing with copied_tokens=0; leave it")
    if "markov" not in config.patterns and (config.kept_priority, config.zipf_exponent) != (0.8, 2.0):
        raise ValueError("kept_priority, zipf_exponent: mean nothing without the pattern markov; leave them")
