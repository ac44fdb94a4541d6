"""Latency models against measured layers of an H100: what they predict, how far off, and where.

    python benchmarks/latency_models.py        # tables on the terminal, a figure in outputs/benchmarks/

Neither model has a constant from the layers compared here (common/hardware/tables/h100/README.md).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import NullLocator

from common import viz
from common.hardware.operators import H100, read_table
from common.hardware.specs import gpu
from common.serving.layer import LayeredLatency
from common.serving.measured import MeasuredLatency, tables
from common.serving.models import model
from common.serving.roofline import RooflineLatency

TICKS = (200, 500, 1000, 2000)  # us
FIGURE = Path("outputs/benchmarks/latency_models.png")


class Layer(NamedTuple):
    """A measured layer: seconds of one, over chunks (new tokens, tokens before) and decodes."""

    label: str
    chunks: list[tuple[int, int]]
    decodes: int
    kv_len: int
    seconds: float

    def predicted(self, latency: LayeredLatency) -> float:
        """Seconds by `latency`."""
        return latency.layer_seconds(self.chunks, self.decodes, self.decodes * self.kv_len)


def mixed_batches() -> Iterator[Layer]:
    """Rows of layers_bf16.csv, by their time inside a CUDA graph."""
    for row in read_table(H100 / "layers_bf16.csv"):
        lengths = [tuple(map(int, part.split("/"))) for part in row["prefill"].split(";") if part]
        chunks = [(new, kv - new) for new, kv in lengths]
        decodes, kv_len = int(row["decode_batch"]), int(row["decode_kv_len"])
        parts = [f"{chunks.count(c)} x {c[0]} after {c[1]}" for c in dict.fromkeys(chunks)]
        parts += [f"{decodes} decodes at {kv_len}"] if decodes else []
        yield Layer(
            ", ".join(parts), chunks, decodes, kv_len, float(row["seconds_graph"]) / int(row["layers"])
        )


def plain_batches() -> Iterator[Layer]:
    """Unfused rows of fusion.csv, by their time inside a CUDA graph."""
    for row in read_table(H100 / "fusion.csv"):
        if row["mode"] == "eager_graph":
            batch, tokens = int(row["batch"]), int(row["tokens"])
            seconds = float(row["seconds"]) / int(row["layers"])
            yield Layer(f"{batch} x {tokens} after 0", [(tokens, 0)] * batch, 0, 0, seconds)


def report(title: str, layers: list[Layer], models: dict[str, LayeredLatency]) -> dict[str, np.ndarray]:
    """Print a table of `layers`; returns each model's relative errors."""
    predictions = {name: np.array([layer.predicted(m) for layer in layers]) for name, m in models.items()}
    measured = np.array([layer.seconds for layer in layers])
    errors = {name: values / measured - 1 for name, values in predictions.items()}
    print(
        f"\n{title}\n{'batch':44s} {'measured':>9s}" + "".join(f"{name:>20s}" for name in models) + "   (us)"
    )
    for index, layer in enumerate(layers):
        cells = (f"{1e6 * predictions[n][index]:11.1f} {errors[n][index]:+7.1%} " for n in models)
        print(f"{layer.label:44s} {1e6 * layer.seconds:9.1f}" + "".join(cells))
    for name, error in errors.items():
        size = np.abs(error)
        worst = layers[int(size.argmax())].label
        print(
            f"{name}: median {np.median(size):.1%}, p90 {np.quantile(size, 0.9):.1%}, worst {size.max():.1%} ({worst})"
        )
    return errors


def main() -> None:
    """Print both tables and draw the figure."""
    shape = model("llama-2-7b")
    models: dict[str, LayeredLatency] = {
        "measured operators": MeasuredLatency(tables(), shape),
        "roofline": RooflineLatency(gpu("h100-sxm"), shape),
    }
    mixed = list(mixed_batches())
    errors = report("One Llama-2-7B layer, mixed batches (layers_bf16.csv)", mixed, models)
    report("One decoder block, plain batches (fusion.csv)", list(plain_batches()), models)

    viz.use_style()
    figure, axes = viz.figure(columns=2)
    measured = np.array([layer.seconds for layer in mixed])
    for (name, error), colour in zip(errors.items(), viz.PALETTE.values(), strict=False):
        axes[0].loglog(1e6 * measured, 1e6 * measured * (1 + error), "o", color=colour, label=name)
        axes[1].semilogx(1e6 * measured, 100 * error, "o", color=colour, label=name)
    ends = 1e6 * np.array([measured.min(), measured.max()])
    axes[0].loglog(ends, ends, color=viz.GREY)
    axes[0].set(xlabel="measured (us a layer)", ylabel="predicted (us a layer)")
    for bound in (-15, 15):
        axes[1].axhline(bound, color=viz.GREY, linestyle="--")
    axes[1].set(xlabel="measured (us a layer)", ylabel="error (%)")
    for ax in axes:
        ax.set_xticks(TICKS, map(str, TICKS))
        ax.xaxis.set_minor_locator(NullLocator())
    axes[0].set_yticks(TICKS, map(str, TICKS))
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE)
    print(f"\nfigure: {FIGURE}")


if __name__ == "__main__":
    main()
