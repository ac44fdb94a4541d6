"""Keeping the KV cache of a conversation on the host: what its copies cost, and what its reuse saves (4.2.2, 6.4)."""

import math
from collections.abc import Sequence

import numpy as np

from common.hardware.copies import PCIE4_BYTES_PER_S
from papers.nanoflow.cost_model import Deployment
from papers.nanoflow.interference import Interference
from papers.nanoflow.list_schedule import Evaluator
from papers.nanoflow.stage_two import Found


def rounds_of(rng: np.random.Generator, conversations: int, mean: float = 2.0) -> np.ndarray:
    """Rounds of multi-round conversations (two or more), shape (conversations,).

    mean: of all conversations; LMSYS-Chat-1M has 2.0 (Zheng et al., arXiv:2309.11998, Table 1). Their spread is not
    printed: geometric (inferred). ValueError for a mean below 1.
    """
    if not mean >= 1 or not math.isfinite(mean):
        raise ValueError(f"a conversation has a round at least; its mean is not {mean}")
    return 1 + rng.geometric(1 / mean, conversations)


def compute_saved(
    rounds: Sequence[int] | np.ndarray, prompt: np.ndarray, output: np.ndarray, reuse: bool
) -> float:
    """Tokens computed without reuse over tokens computed with it.

    prompt, output: tokens of the rounds of all conversations in a row, shape (sum of rounds,). Without reuse round k
    computes all earlier rounds again; with it only its own prompt and output.
    """
    recomputed = computed = 0
    if len(prompt) != len(output) or len(prompt) < sum(rounds) or not len(rounds):
        raise ValueError(
            f"{len(prompt)} prompts and {len(output)} outputs are not those of {sum(rounds)} rounds"
        )
    first = 0
    for count in rounds:
        own = prompt[first : first + count] + output[first : first + count]
        computed += int(own.sum())
        recomputed += int(np.cumsum(own).sum())
        first += count
    return recomputed / (computed if reuse else recomputed)


def copy_us(deployment: Deployment, batch: int, reloaded: float) -> float:
    """Microseconds of one layer's copies on one GPU: new keys and values out, `reloaded` old tokens a new one in.

    Both directions share the wire, pages gathered in contiguous pieces first (the paper's fast path), at PCIe 4 x16.
    """
    layer_bytes = deployment.shape.kv_bytes_per_token() / deployment.shape.layers / deployment.gpus
    return 1e6 * batch * (1 + reloaded) * layer_bytes / PCIE4_BYTES_PER_S


def period_with_copies(
    found: Found, curves: Interference, copies_us: float, hidden: bool, copy_share: float
) -> float:
    """The period (us) with the copies, either beside the MLP or by themselves.

    Hidden, they hold copy_share of the execution units for as long as they last, taken from the MLP's GEMMs of the same
    nano-batches: those lose that share for a part of their time that is as long as the copies. The rest of the order
    stays. What a copy takes of the memory's bandwidth is not modelled, nor scattering the pages.
    """
    if not hidden:
        return found.schedule.period + copies_us
    mlp = [i for i, op in enumerate(found.layer.ops) if op.operator in ("UpGate", "Down")]
    lengths = Evaluator(found.layer, curves).durations(found.schedule.shares)
    beside = sum(lengths[i] for i in mlp)
    share = found.schedule.shares
    lost = sum(
        min(1.0, copies_us / beside) * lengths[i] * copy_share / share[i]
        for i in mlp
        if _room(found, lengths, i) < copy_share
    )
    return found.schedule.period + max(0.0, copies_us - beside) + lost


def _room(found: Found, lengths: Sequence[float], op: int) -> float:
    """Share of the execution units that nobody holds at any time while an op runs."""
    schedule = found.schedule
    begin, end = schedule.starts[op], schedule.starts[op] + lengths[op]
    held = [0.0]
    spans = [
        (start + k * schedule.period, start + k * schedule.period + length, share)
        for start, length, share in zip(schedule.starts, lengths, schedule.shares, strict=True)
        for k in range(-4, 5)
    ]
    moments = [begin, *(s for s, _, _ in spans if begin < s < end)]
    for moment in moments:
        held.append(sum(share for s, e, share in spans if s <= moment + 1e-9 and e > moment + 1e-9))
    return 1.0 - max(held)
