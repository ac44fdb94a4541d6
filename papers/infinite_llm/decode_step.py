"""One decode step on A100s, in closed form: attention over remote parts.

Seconds are of one layer of LLaMA-2-13B's dimensions on four GPUs of a node (Figure of v2's kernel study): memory-bound
attention, and messages over NVLink at the profiled time of a small transfer.
"""

from common.hardware.specs import gpu as device
from common.hardware.specs import link
from common.serving.profiled import ATTENTION_BANDWIDTH_SHARE, send
from papers.infinite_llm.cluster import CARD, NETWORK

HEADS, HEAD_DIM, BYTES = 40, 128, 2  # LLaMA-2-13B, bf16
GPUS = 4


def attention_seconds(method: str, tokens: int) -> float:
    """Of one layer's attention of one request over `tokens` tokens on GPUS GPUs: "dist", "ring" or "fetch".

    dist: each GPU attends to its part, queries and partial results cross once. ring: before each of the other parts is
    attended to, it travels one hop; copies overlap with attention, so that the longer of the two counts.
    """
    kv_bytes = 2 * HEADS * HEAD_DIM * BYTES * tokens
    nvlink = link(device(CARD).interconnect)
    part = kv_bytes / GPUS / (ATTENTION_BANDWIDTH_SHARE * device(CARD).bandwidth)
    if method == "dist":
        small = HEADS * (2 * HEAD_DIM + 2) * BYTES / (nvlink.bytes_per_s * nvlink.usable)
        return part + 2 * send(NETWORK, 2, HEADS * HEAD_DIM * BYTES) + (GPUS - 1) * small
    if method == "ring":
        hop = send(NETWORK, 2, 0.0) + kv_bytes / GPUS / (nvlink.bytes_per_s * nvlink.usable)
        return part + (GPUS - 1) * max(hop, part)
    if method == "fetch":  # all remote parts come to one GPU, which attends to everything
        copies = (GPUS - 1) * kv_bytes / GPUS / (nvlink.bytes_per_s * nvlink.usable)
        return max(copies, GPUS * part)
    raise KeyError(f"no method {method!r}; there is dist, ring and fetch")
