"""Writes length_quantiles.csv: quantiles of the prompt and output lengths of real traces, and their rank correlation.

    python -m common.serving.length_quantiles TRACE=FILE ...

A table of quantiles is a fact about a trace; the traces themselves are fetched by the data registry and never
committed. Requests of 2,048 tokens or more in all are left out, as DistServe does for OPT's context.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.serving.workload import QUANTILES, TABLED, read_trace

POINTS = np.concatenate([[0, 0.001, 0.005], np.linspace(0.01, 0.99, 99), [0.995, 0.999, 1]])
SOURCES = {
    "sharegpt": "efeslab/Nanoflow datasets/traces/sharegpt.csv (first turns)",
    "lmsys": "efeslab/Nanoflow datasets/traces/lmsys.csv",
    "azure-conversation": "microsoft/vidur data/processed_traces, Azure LLM inference trace 2023 (CC-BY-4.0)",
    "azure-code": "microsoft/vidur data/processed_traces, Azure LLM inference trace 2023 (CC-BY-4.0)",
    "arxiv-summarisation": "microsoft/vidur data/processed_traces/"
    "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
}


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def main(arguments: list[str]) -> None:
    paths = {trace: Path(path) for trace, _, path in (text.partition("=") for text in arguments)}
    if unknown := paths.keys() - SOURCES:
        raise SystemExit(f"unknown trace {', '.join(unknown)}; one of {', '.join(SOURCES)}")
    QUANTILES.write_text(table(paths))


def table(paths: Mapping[str, Path]) -> str:
    """The text of length_quantiles.csv for trace files by the name of the trace."""
    lines = [f"# Quantiles of requests with fewer than {TABLED:,} tokens. Sources: "]
    lines[0] += "; ".join(f"{trace}: {source}" for trace, source in SOURCES.items())
    lines.append("trace,probability,prompt,output,spearman")
    for trace, path in paths.items():
        lengths = read_trace(path).within(TABLED)
        spearman = np.corrcoef(_ranks(lengths.prompt), _ranks(lengths.output))[0, 1]
        prompt, output = (np.quantile(values, POINTS) for values in (lengths.prompt, lengths.output))
        lines += [
            f"{trace},{p:.3f},{a:.6g},{b:.6g},{spearman:.4f}"
            for p, a, b in zip(POINTS, prompt, output, strict=True)
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
