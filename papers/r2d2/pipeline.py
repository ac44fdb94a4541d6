"""The stages in a row on a folder of Parquet files, with what each cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.parquet import CountedFile, Footer, footer
from papers.r2d2 import content, min_max
from papers.r2d2.config import Config
from papers.r2d2.schema_graph import Edge, SchemaGraph, schema_graph

STAGES = ("schema", "min-max", "content", "verified")


@dataclass(frozen=True)
class Settings:
    """What each stage does; the switches at their other value turn a stage off or break it."""

    clustered: bool = True  # False: compare all pairs of schemas
    every_centre: bool = True  # False: a table joins one cluster only
    statistics: bool = True  # False: footers prune nothing
    sampled_statistics: int = 0  # bounds from so many sampled rows in place of the footers'; 0: footers
    rows: int = 20  # looked up of each contained table
    columns: int | None = None  # looked up of each row; None: all
    verify: bool = True  # check the survivors in full

    @classmethod
    def of(cls, config: Config, verify: bool = True) -> "Settings":
        """Those of an experiment's config."""
        return cls(
            clustered=config.clustered,
            every_centre=config.every_centre,
            statistics=config.statistics,
            sampled_statistics=config.sampled_statistics,
            rows=config.sample_rows,
            verify=verify,
        )


@dataclass(frozen=True)
class Stage:
    """The edges after a stage, the processor seconds of the calling thread, and the bytes it read (None: unknown)."""

    edges: tuple[Edge, ...]
    seconds: float
    bytes_read: int | None


@dataclass(frozen=True)
class Found:
    """footers: of every table. metadata_bytes, page_bytes: read by the first two stages."""

    footers: tuple[Footer, ...]
    graph: SchemaGraph
    stages: dict[str, Stage]
    metadata_bytes: int
    page_bytes: int

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())


def find_containments(
    paths: Sequence[Path], engine: content.Engine, settings: Settings, rng: np.random.Generator
) -> Found:
    """All stages; the edges (container, contained) after each are places in `paths`."""
    stages: dict[str, Stage] = {}
    metadata_bytes = page_bytes = 0

    begun = time.thread_time()
    footers, known = [], []
    for path in paths:
        with CountedFile(path) as file:
            told = footer(path, file)
            footers.append(told)
            if settings.sampled_statistics:
                told = min_max.sampled(path, told, settings.sampled_statistics, rng, file)
            known.append(told)
            page_bytes += file.bytes_before(told.starts)
            metadata_bytes += file.bytes_read - file.bytes_before(told.starts)
    graph = schema_graph(
        [min_max.schema(told) for told in footers], settings.clustered, settings.every_centre
    )
    edges: Sequence[Edge] = graph.edges
    stages["schema"] = Stage(tuple(edges), time.thread_time() - begun, metadata_bytes + page_bytes)

    begun = time.thread_time()
    if settings.statistics:
        edges = min_max.prune(edges, known)
    stages["min-max"] = Stage(tuple(edges), time.thread_time() - begun, 0)

    begun, read = time.thread_time(), bytes_read()
    probes = content.sampled_probes(edges, paths, footers, settings.rows, settings.columns, rng)
    if settings.rows:
        edges = content.survivors(edges, probes, engine)
    stages["content"] = Stage(tuple(edges), time.thread_time() - begun, _since(read))

    if settings.verify:
        begun, read = time.thread_time(), bytes_read()
        edges = content.survivors(edges, content.whole_probes(edges, paths, footers), engine)
        stages["verified"] = Stage(tuple(edges), time.thread_time() - begun, _since(read))
    return Found(tuple(footers), graph, stages, metadata_bytes, page_bytes)


EVERY_PAIR = Settings(clustered=False, statistics=False, rows=0)  # the same answer without any pruning


def bytes_read() -> int | None:
    """Bytes that this process has read from files so far, by the kernel's count; None where it keeps none."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in lines)["rchar"])


def _since(before: int | None) -> int | None:
    now = bytes_read()
    return None if before is None or now is None else now - before
