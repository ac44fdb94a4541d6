"""The notebook's exercises and their solutions. Each answer is computed by the mechanism."""

from typing import Any

from common.lab.exercises import Exercise
from papers.nanoflow.cost_model import LLAMA_2_70B, NETWORK, Operator, Workload, operators, sequential_us
from papers.nanoflow.interference import fluid_bound, interference
from papers.nanoflow.nano_batches import even_cuts, split_layer
from papers.nanoflow.offload import copy_us

WORKLOAD = Workload(1024, 512)


def at_most(ops: dict[str, Operator], batch: int) -> float:
    """The most that overlap can gain over non-overlap with two nano-batches of everything."""
    layer = split_layer(ops, batch, {name: even_cuts(batch, 2) for name in ops})
    return sequential_us(ops, batch) / fluid_bound(layer.work, interference())


def without_network(lab: Any) -> float:
    """The bound's gain of LLaMA-2-70B where collectives take no time on either side."""
    ops = operators(LLAMA_2_70B, WORKLOAD)
    return at_most({name: op for name, op in ops.items() if op.stream != NETWORK}, 2048)


def smallest_batch(lab: Any) -> int:
    """The smallest dense batch, a multiple of 256, at which the bound lies above non-overlap."""
    ops = operators(LLAMA_2_70B, WORKLOAD)
    return next(batch for batch in range(256, 4097, 256) if at_most(ops, batch) > 1)


def share_of_copies(lab: Any) -> float:
    """Microseconds of a layer's copies over those of the layer, one reloaded token for each new one."""
    return copy_us(LLAMA_2_70B, 2048, 1.0) / sequential_us(operators(LLAMA_2_70B, WORKLOAD), 2048)


EXERCISES = {
    "exercise-1": Exercise(
        "Take the collectives away on both sides (LLaMA-2-70B, 1,024 in, 512 out, two nano-batches of everything). How "
        "much can overlap gain over one operator after another then, at most?",
        "Keep the operators whose stream is not 'network', split them with even_cuts(2048, 2), and divide "
        "sequential_us by fluid_bound(layer.work, interference()).",
        without_network,
        0.003,
    ),
    "exercise-2": Exercise(
        "Find the smallest dense batch, in steps of 256 tokens, at which the fluid bound of two nano-batches is faster "
        "than one operator after another (LLaMA-2-70B, 1,024 in, 512 out).",
        "Loop over batches; both split costs are fixed, so that they weigh most where the batch is small.",
        smallest_batch,
        0.0,
    ),
    "exercise-3": Exercise(
        "KV offloading reloads one old token for every new one. Which share of a sequential layer's time do the copies "
        "take over PCIe 4, if nothing hides them (2,048 tokens)?",
        "copy_us(LLAMA_2_70B, 2048, 1.0) counts new tokens out and old ones in; divide by sequential_us.",
        share_of_copies,
    ),
}
