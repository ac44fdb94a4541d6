"""Block-wise quantisation on a CPU: codes looked up by first bits, all bounds searched, and bitsandbytes.

    python benchmarks/blockwise.py [elements]

Prints nanoseconds an element, the median of several rounds on one thread, and whether all three give the same codes.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from bitsandbytes.functional import quantize_blockwise
from torch import Tensor

from common.quant.blockwise import quantise
from common.quant.codebooks import dynamic

ROUNDS = 9
BLOCK = 2048


def searched(tensor: Tensor, code: Tensor) -> Tensor:
    """The same codes by binary search alone."""
    blocks = tensor.view(-1, BLOCK)
    scaled = blocks / blocks.abs().amax(dim=1, keepdim=True)
    return torch.bucketize(scaled, (code[1:] + code[:-1]) / 2).to(torch.uint8).view(-1)


def nanoseconds(run: Callable[[], object], elements: int) -> float:
    """Median over rounds, an element."""
    run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e9 * median(times) / elements


def main(elements: int) -> None:
    torch.set_num_threads(1)
    code = dynamic()
    tensor = torch.randn(elements // BLOCK * BLOCK, generator=torch.Generator().manual_seed(0))
    ways = {
        "looked up (common.quant)": lambda: quantise(tensor, code, BLOCK).codes,
        "searched (torch.bucketize)": lambda: searched(tensor, code),
        "bitsandbytes": lambda: quantize_blockwise(tensor, code, blocksize=BLOCK)[0].view(-1),
    }
    ours = ways["looked up (common.quant)"]()
    for name, run in ways.items():
        differing = int((run() != ours).sum())
        print(f"{name:28s} {nanoseconds(run, len(tensor)):6.2f} ns an element, {differing} codes differ")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2**22)
