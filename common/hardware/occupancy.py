"""How many thread blocks of a kernel fit on a streaming multiprocessor (SM) at once, from the SM's limits.

`occupancy(LIMITS["8.9"], threads_a_block, shared_bytes, registers_a_thread)` does what NVIDIA's occupancy calculator
does (cuda_occupancy.h of the CUDA toolkit, which a test compiles and compares with where it is installed).
"""

from dataclasses import dataclass

WARP = 32  # threads
GUIDE = "CUDA C++ Programming Guide 13.0, Technical Specifications per Compute Capability; cuda_occupancy.h"


@dataclass(frozen=True)
class Limits:
    """What one SM of a compute capability holds, and in which portions it gives it away.

    Registers are 32 bits wide. They are given per warp, in portions of `register_unit`, out of the equal share of the
    SM's `partitions`; shared memory per block, in portions of `shared_unit` bytes and with `shared_reserved` bytes that
    the system keeps for itself in each block.
    """

    compute_capability: str
    threads: int
    warps: int
    blocks: int
    shared_bytes: int
    shared_bytes_a_block: int  # at most, with the opt-in above 48 KiB
    registers: int
    source: str
    threads_a_block: int = 1024
    registers_a_thread: int = 255
    register_unit: int = 256
    partitions: int = 4
    shared_unit: int = 128
    shared_reserved: int = 1024


LIMITS: dict[str, Limits] = {
    limits.compute_capability: limits
    for limits in (
        Limits("8.0", 2048, 64, 32, 164 << 10, 163 << 10, 65536, GUIDE),  # A100
        Limits("8.9", 1536, 48, 24, 100 << 10, 99 << 10, 65536, GUIDE),  # Ada Lovelace
        Limits("9.0", 2048, 64, 32, 228 << 10, 227 << 10, 65536, GUIDE),  # H100
    )
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps resident on an SM, warps over the most that it holds, and what allows no further block."""

    blocks: int
    warps: int
    share: float
    limited_by: tuple[str, ...]  # of: blocks, warps, shared memory, registers


def limits(compute_capability: str) -> Limits:
    """The limits of a compute capability such as "8.9"; KeyError naming the known ones otherwise."""
    if compute_capability not in LIMITS:
        raise KeyError(f"no limits of compute capability {compute_capability!r}; known: {', '.join(LIMITS)}")
    return LIMITS[compute_capability]


def warps_of(threads: int) -> int:
    """Warps that a block of `threads` occupies; the last one may have idle lanes."""
    return -(-threads // WARP)


def occupancy(
    limits: Limits, threads_a_block: int, shared_bytes: int = 0, registers_a_thread: int = 32
) -> Occupancy:
    """Resident blocks of a kernel: the least of what blocks, warps, shared memory and registers allow.

    shared_bytes: static and dynamic shared memory of a block. ValueError for a block that no SM of this kind can run.
    """
    for name, value, most in (
        ("threads a block", threads_a_block, limits.threads_a_block),
        ("registers a thread", registers_a_thread, limits.registers_a_thread),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: {value} is not in 1..{most} (cc {limits.compute_capability})")
    if not 0 <= shared_bytes <= limits.shared_bytes_a_block:
        raise ValueError(
            f"shared memory of a block: {shared_bytes} is not in 0..{limits.shared_bytes_a_block} bytes "
            f"(cc {limits.compute_capability})"
        )
    warps = warps_of(threads_a_block)
    shared = _up(shared_bytes, limits.shared_unit) + limits.shared_reserved
    of_a_warp = _up(registers_a_thread * WARP, limits.register_unit)
    # A launch is refused unless its warps, dealt out to all partitions, find their registers.
    if of_a_warp * _up(warps, limits.partitions) > limits.registers:
        raise ValueError(
            f"{threads_a_block} threads with {registers_a_thread} registers each are more than the "
            f"{limits.registers} registers of an SM (cc {limits.compute_capability})"
        )
    warps_with_registers = limits.partitions * (limits.registers // limits.partitions // of_a_warp)
    allowed = {
        "blocks": limits.blocks,
        "warps": min(limits.warps, limits.threads // WARP) // warps,
        "shared memory": limits.shared_bytes // shared,
        "registers": warps_with_registers // warps,
    }
    blocks = min(allowed.values())
    return Occupancy(
        blocks,
        blocks * warps,
        blocks * warps / limits.warps,
        tuple(name for name, most in allowed.items() if most == blocks),
    )


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
