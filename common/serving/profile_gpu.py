"""Measures this machine's GPU: the tables that OperatorTables.load reads, with the H100 tables' columns.

    python -m common.serving.profile_gpu [OUT_DIR] [--memory-share 0.6] [--quick]

writes linear_bf16.csv, attention_bf16.csv, copies.csv, layers_bf16.csv and device.json to OUT_DIR, which must not
exist yet (default: outputs/gpu/<card>). Nothing appears there until all are complete. Calls whose operands
exceed the share of the device's memory are left out. The clock is a `Timer` handed in; torch_timer.py is the one
for CUDA.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from common.serving.models import model
from common.serving.operator_calls import AttentionCall, CopyCall, LayerCall, LinearCall, Sample

NO_GPU = "gpu-profile needs a CUDA GPU that PyTorch sees; without one use the H100's tables in common/hardware/tables"
DEFAULT_MEMORY_SHARE = 0.6
CHECKS_ONLY = "layers_bf16.csv"  # no model reads it: a card too small for whole layers goes without


class Timer(Protocol):
    """A clock for operators on one device; a call that does not fit raises MemoryError."""

    def device(self) -> dict[str, str | int]: ...
    def linear(self, m: int, k: int, n: int) -> Sample: ...
    def attention(self, call: AttentionCall) -> Sample: ...
    def copy(self, call: CopyCall) -> Sample: ...
    def layers(self, call: LayerCall) -> tuple[Sample, Sample]: ...


@dataclass(frozen=True)
class Grid:
    """What is measured; the defaults are the grid of the H100 tables."""

    models: tuple[str, ...] = ("opt-13b", "opt-66b", "llama-2-7b", "llama-2-70b", "llama-3-8b")
    degrees: tuple[int, ...] = (1, 2, 4, 8)
    tokens: tuple[int, ...] = (
        1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192,
    )  # fmt: skip
    heads: tuple[tuple[int, int, int], ...] = (
        (32, 32, 128), (32, 8, 128), (64, 8, 128), (8, 1, 128), (40, 40, 128), (72, 72, 128),
    )  # fmt: skip
    prompts: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    chunks: tuple[int, ...] = (256, 512, 1024, 2048)
    chunk_contexts: tuple[int, ...] = (1024, 4096, 16384)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096, 8192)
    copy_bytes: tuple[int, ...] = tuple(4096 * 4**step for step in range(10))
    block_bytes: int = 64 << 20
    blocks: tuple[int, ...] = (1, 8, 64, 512, 4096)
    layer_model: str = "llama-2-7b"
    layers: int = 4
    layer_batches: tuple[tuple[tuple[tuple[int, int], ...], int, int], ...] = field(
        default=(
            (((1024, 0),), 0, 0), (((1024, 0),) * 4, 0, 0), (((128, 0),) * 16, 0, 0),
            ((), 1, 2048), ((), 4, 1024), ((), 8, 2048), ((), 16, 1024), ((), 32, 512), ((), 64, 128),
            ((), 128, 1024), ((), 256, 512),
            (((128, 0),), 32, 2048), (((128, 2048),), 32, 1024), (((1024, 0),), 8, 512),
        )
    )  # fmt: skip

    def linear_calls(self) -> list[LinearCall]:
        """Every linear layer of the models at every degree, by tokens."""
        shapes = {
            (k, n)
            for name in self.models
            for degree in self.degrees
            if degree in model(name).tensor_parallel_degrees()
            for _, k, n in model(name).linears(degree)
        }
        return [LinearCall(m, k, n) for k, n in sorted(shapes) for m in self.tokens]

    def attention_calls(self) -> list[AttentionCall]:
        """Prompts, chunks and decode batches for every set of heads."""
        calls = []
        for heads in self.heads:
            calls += [AttentionCall("prefill_causal", *heads, 1, q, q) for q in self.prompts]
            calls += [
                AttentionCall("chunk_full", *heads, 1, q, c) for q in self.chunks for c in self.chunk_contexts
            ]
            calls += [AttentionCall("decode", *heads, b, 1, c) for b in self.batches for c in self.contexts]
        return calls

    def copy_calls(self) -> list[CopyCall]:
        """Single copies by size, one size in blocks, and the largest size within the device."""
        both = ("h2d", "d2h")
        calls = [
            CopyCall(kind, way, b, 1)
            for kind in ("pinned", "pageable")
            for b in self.copy_bytes
            for way in both
        ]
        for count in self.blocks:
            for kind in ("pinned_blocks", "pinned_blocks_dispatch_only"):
                calls += [CopyCall(kind, way, self.block_bytes, count) for way in both]
        return [*calls, CopyCall("device_copy", "d2d", max(self.copy_bytes), 1)]

    def layer_calls(self) -> list[LayerCall]:
        """Whole layers over mixed batches."""
        return [LayerCall(model(self.layer_model), self.layers, *batch) for batch in self.layer_batches]


# A first look in a few minutes: one model, few sizes.
QUICK = Grid(
    models=("llama-2-7b",),
    degrees=(1, 2),
    tokens=(1, 8, 64, 256, 1024, 4096),
    heads=((32, 32, 128), (32, 8, 128)),
    prompts=(128, 1024, 4096, 8192),
    batches=(1, 8, 64, 256),
    contexts=(128, 1024, 4096, 8192),
    blocks=(1, 512),
)

Table = tuple[str, Sequence[Any], Callable[[Any], Iterator[dict[str, object]]]]


def tables(timer: Timer, grid: Grid) -> list[Table]:
    """(file name, calls, rows of a call) of every table."""

    def linear(call: LinearCall) -> Iterator[dict[str, object]]:
        yield {"op": "linear", "dtype": "bf16", **call._asdict(), **timer.linear(*call)._asdict()}

    def attention(call: AttentionCall) -> Iterator[dict[str, object]]:
        yield {**call._asdict(), **timer.attention(call)._asdict()}

    def copy(call: CopyCall) -> Iterator[dict[str, object]]:
        yield {**call._asdict(), **timer.copy(call)._asdict()}

    def layers(call: LayerCall) -> Iterator[dict[str, object]]:
        eager, graph = timer.layers(call)
        yield {
            "model": call.shape.name,
            "layers": call.layers,
            "prefill": ";".join(f"{new}/{new + before}" for new, before in call.chunks),
            "decode_batch": call.decodes,
            "decode_kv_len": call.decode_kv_len,
            "tokens": call.tokens,
            "seconds_eager": eager.seconds,
            "seconds_graph": graph.seconds,
            "p05": graph.p05,
            "p95": graph.p95,
        }

    return [
        ("linear_bf16.csv", grid.linear_calls(), linear),
        ("attention_bf16.csv", grid.attention_calls(), attention),
        ("copies.csv", grid.copy_calls(), copy),
        ("layers_bf16.csv", grid.layer_calls(), layers),
    ]


def profile(
    directory: Path,
    timer: Timer,
    grid: Grid,
    memory_share: float = DEFAULT_MEMORY_SHARE,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, int]:
    """Measure `grid` and write its tables to `directory`; returns how many calls each table left out.

    memory_share: of the device's memory that a call's operands may take. report(table, done, total): progress.
    Written beside `directory` first and renamed when complete. Raises FileExistsError if it exists, ValueError
    if nothing of a table fits that OperatorTables needs.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists; remove it or name another folder")
    device = timer.device()
    budget = memory_share * int(device["mem"])
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    left_out = {}
    try:
        for name, calls, rows_of in tables(timer, grid):
            rows, skipped = _measure(name, calls, rows_of, budget, report)
            if rows:
                (part / name).write_text(_csv(rows))
            elif name != CHECKS_ONLY:
                raise ValueError(f"nothing of {name} fits into {budget / 2**30:.1f} GiB")
            left_out[name] = skipped
        (part / "device.json").write_text(json.dumps(device) + "\n")
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return left_out


def _measure(
    name: str,
    calls: Sequence[Any],
    rows_of: Callable[[Any], Iterator[dict[str, object]]],
    budget: float,
    report: Callable[[str, int, int], None],
) -> tuple[list[dict[str, object]], int]:
    rows: list[dict[str, object]] = []
    skipped = 0
    for done, call in enumerate(calls, 1):
        try:
            if call.bytes > budget:
                raise MemoryError
            rows += rows_of(call)
        except MemoryError:
            skipped += 1
        report(name, done, len(calls))
    return rows, skipped


def _csv(rows: Iterable[dict[str, object]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _progress(start: float) -> Callable[[str, int, int], None]:
    def report(name: str, done: int, total: int) -> None:
        end = "\n" if done == total else ""
        took = time.monotonic() - start
        print(f"\r{name:20s} {done:5d}/{total}  {took:6.0f} s", end=end, file=sys.stderr, flush=True)

    return report


def cuda_timer() -> Timer | None:
    """The timer of this machine's GPU; None without one."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    from common.serving.torch_timer import TorchTimer

    return TorchTimer("cuda")


def main(arguments: Sequence[str] | None = None, timer: Timer | None = None) -> int:
    """The command; timer: by default this machine's GPU. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu-profile", description="measure this machine's GPU")
    parser.add_argument("directory", type=Path, nargs="?", help="default: outputs/gpu/<card>")
    parser.add_argument("--memory-share", type=float, default=DEFAULT_MEMORY_SHARE)
    parser.add_argument("--quick", action="store_true", help="a few sizes of one model")
    options = parser.parse_args(arguments)
    if not 0 < options.memory_share <= 1:
        parser.error("--memory-share lies in (0, 1]")
    timer = timer or cuda_timer()
    if timer is None:
        print(NO_GPU, file=sys.stderr)
        return 1
    card = re.sub(r"[^a-z0-9]+", "-", str(timer.device()["name"]).lower()).strip("-")
    directory = options.directory or Path("outputs/gpu") / card
    try:
        grid = QUICK if options.quick else Grid()
        left_out = profile(directory, timer, grid, options.memory_share, _progress(time.monotonic()))
    except KeyboardInterrupt:
        print("\ngpu-profile: stopped, nothing written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"gpu-profile: {error}", file=sys.stderr)
        return 1
    for name, skipped in left_out.items():
        if skipped:
            print(f"{name}: {skipped} calls left out, larger than the share of memory")
    print(f"tables in {directory}: OperatorTables.load(Path({str(directory)!r})) reads them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
