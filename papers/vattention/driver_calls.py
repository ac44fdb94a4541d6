"""What the driver's calls cost on a GPU: measured on an H100, and for the authors' patched driver with small pages."""

from functools import cache

from common.hardware.operators import H100, read_table

LARGE_PAGE = 2 << 20  # bytes: the smallest page of CUDA's own driver
# The patched driver of the paper maps at most 7.6 GB/s with 64 KB pages on one GPU (Section 6, allocation bandwidth):
# so long a page takes. An input, not a result; larger pages of that driver are given the same seconds a call.
PATCHED_CALL_SECONDS = (64 << 10) / 7.6e9


@cache
def call_seconds(page_bytes: int) -> float:
    """Seconds to map one page and allow access to it.

    2 MB and more: cuMemMap + cuMemSetAccess as measured on one H100 (tables/h100/virtual_memory.csv), the nearest size.
    Less: the patched driver.
    """
    if page_bytes < LARGE_PAGE:
        return PATCHED_CALL_SECONDS
    rows = read_table(H100 / "virtual_memory.csv")
    sizes = sorted({int(row["page_bytes"]) for row in rows}, key=lambda size: (abs(size - page_bytes), size))
    return sum(
        float(row["seconds"])
        for row in rows
        if row["call"] in ("map", "set_access") and int(row["page_bytes"]) == sizes[0]
    )
