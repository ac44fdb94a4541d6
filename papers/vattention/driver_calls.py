"""What others' hardware says: a driver's calls and attention on an H100, and what the paper alone could measure.

Tables: tables/h100/virtual_memory.csv and h100_paged_gather.csv, measured for this project on one NVIDIA H100 80GB HBM3
(SXM; PyTorch 2.11, CUDA 13.0) on 2026-11-23. published.csv: inputs from the paper, which are no results here.
"""

from pathlib import Path

from common.hardware.operators import H100, read_table

LARGE_PAGE = 2 << 20  # bytes: the smallest page of CUDA's own driver
SMALL_PAGE = 64 << 10  # bytes: the smallest page of the paper's patched driver
PUBLISHED = Path(__file__).with_name("published.csv")
GATHERED = Path(__file__).with_name("h100_paged_gather.csv")


def published(name: str) -> float:
    """An input from the paper; KeyError for another name."""
    return {row["input"]: float(row["value"]) for row in read_table(PUBLISHED)}[name]


def call_seconds(page_bytes: int) -> float:
    """Seconds to map one page and allow access to it.

    2 MB and more: cuMemMap + cuMemSetAccess as measured on one H100, the nearest size. Less: the patched driver of the
    paper, which maps so many bytes a second with pages of 64 KB; larger pages of it take the same seconds a call.
    """
    if page_bytes < 1:
        raise ValueError(f"a page of {page_bytes} bytes")
    if page_bytes < LARGE_PAGE:
        return SMALL_PAGE / published("patched_driver_bandwidth")
    rows = read_table(H100 / "virtual_memory.csv")
    sizes = sorted({int(row["page_bytes"]) for row in rows}, key=lambda size: (abs(size - page_bytes), size))
    return sum(
        float(row["seconds"])
        for row in rows
        if row["call"] in ("map", "set_access") and int(row["page_bytes"]) == sizes[0]
    )


def gathering_ratio(new: int, context: int, block_tokens: int = 256, kv_heads: int = 8) -> float:
    """Attention over blocks gathered first, over the same on contiguous keys and values, on the H100.

    new queries at the end of a context, 32 query heads. At most what a paged layout costs: a kernel that follows the
    block table copies nothing. Blocks of 0 tokens, or as long as the context, leave nothing to gather: 1. KeyError
    where the table has no such row.
    """
    if block_tokens in (0, context):
        return 1.0
    seconds = {
        (row["layout"], int(row["q_len"]), int(row["kv_len"]), int(row["kv_heads"])): float(row["seconds"])
        for row in read_table(GATHERED)
    }
    at = (new, context, kv_heads)
    return seconds[f"gather_{block_tokens}", *at] / seconds["contiguous", *at]
