"""Workloads: when requests arrive, how long their prompts are, and how many tokens they ask for.

Arrival processes are drawn at one request a second and then scaled, so that every rate of a goodput search sees the
same requests in the same order (common random numbers). Lengths come from a real trace where its file is at hand, from
a committed table of that trace's quantiles elsewhere, or from a stated distribution.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from common.stats.quantiles import QuantileTable


@dataclass(frozen=True)
class Workload:
    """Requests in the order of arrival: seconds (ascending), prompt tokens, output tokens; arrays of shape (n,).

    Kept as float64 and int64. Raises ValueError for arrays of different length; for times that are negative, not finite
    or not ascending; for lengths below one token or that are no whole numbers.
    """

    arrival: np.ndarray
    prompt: np.ndarray
    output: np.ndarray

    def __post_init__(self) -> None:
        shapes = {np.shape(self.arrival), np.shape(self.prompt), np.shape(self.output)}
        if len(shapes) != 1 or len(shapes.pop()) != 1:
            raise ValueError(
                "arrival, prompt and output must be equally long rows, not of shapes "
                f"{np.shape(self.arrival)}, {np.shape(self.prompt)}, {np.shape(self.output)}"
            )
        object.__setattr__(self, "arrival", np.asarray(self.arrival, dtype=np.float64))
        for name in ("prompt", "output"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        if not np.all(np.isfinite(self.arrival)):
            raise ValueError("arrival times must be finite seconds")
        if len(self.arrival) and (np.any(np.diff(self.arrival) < 0) or self.arrival[0] < 0):
            raise ValueError(
                "arrival times must be non-negative seconds in ascending order; sort the requests"
            )
        if np.any(self.prompt < 1) or np.any(self.output < 1):
            raise ValueError(
                "every request needs at least one prompt token and one output token; filter the trace"
            )

    def __len__(self) -> int:
        return len(self.arrival)

    def scaled(self, rate: float) -> "Workload":
        """The same requests arriving `rate` times as fast."""
        if not rate > 0:
            raise ValueError(f"rate must be positive requests/s, not {rate}")
        return Workload(self.arrival / rate, self.prompt, self.output)

    def first(self, n: int) -> "Workload":
        """The first `n` requests, or all if there are fewer."""
        return Workload(self.arrival[:n], self.prompt[:n], self.output[:n])


def _whole(name: str, tokens: np.ndarray) -> np.ndarray:
    whole = np.asarray(tokens)
    if whole.dtype.kind not in "iu":
        whole = np.rint(np.asarray(tokens, dtype=float))
        if not np.array_equal(whole, tokens):
            raise ValueError(f"{name}: lengths must be whole numbers of tokens")
    return whole.astype(np.int64)


def poisson(rng: np.random.Generator, n: int) -> np.ndarray:
    """Arrival times of a Poisson process of one request a second, shape (n,)."""
    return np.cumsum(rng.exponential(1.0, n))


def gamma(rng: np.random.Generator, n: int, cv: float) -> np.ndarray:
    """Arrival times at one request a second with Gamma gaps of coefficient of variation `cv` (1: Poisson)."""
    if not cv > 0:
        raise ValueError(f"coefficient of variation must be positive, not {cv}")
    shape = 1 / cv**2
    return np.cumsum(rng.gamma(shape, 1 / shape, n))


def replayed(timestamps: np.ndarray, n: int) -> np.ndarray:
    """The first `n` recorded arrival times, shifted to start at zero and scaled to one request a second on average."""
    if n < 1:
        raise ValueError(f"{n} arrivals were asked for; ask for at least one")
    if n > len(timestamps):
        raise ValueError(f"the trace holds {len(timestamps)} arrivals, {n} were asked for")
    times = np.sort(np.asarray(timestamps, dtype=float))[:n]
    span = times[-1] - times[0]
    return (times - times[0]) * ((n - 1) / span) if span > 0 else times - times[0]


@dataclass(frozen=True)
class Lengths:
    """Joint sample of prompt and output tokens, arrays of shape (n,)."""

    prompt: np.ndarray
    output: np.ndarray

    def within(self, total: int) -> "Lengths":
        """Those with at least one token each way and fewer than `total` tokens in all."""
        keep = (self.prompt > 0) & (self.output > 0) & (self.prompt + self.output < total)
        return Lengths(self.prompt[keep], self.output[keep])

    def sample(self, rng: np.random.Generator, n: int) -> "Lengths":
        """`n` pairs drawn with replacement."""
        chosen = rng.integers(len(self.prompt), size=n)
        return Lengths(self.prompt[chosen], self.output[chosen])


# Column names of arrival, prompt and output in the traces that the data registry knows.
_COLUMNS = (
    ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
)


def read_trace(path: Path) -> Lengths:
    """Prompt and output tokens of a trace file, in its order. Raises ValueError naming the columns it would need."""
    rows, (_, *columns) = _rows(path)
    try:
        return Lengths(*(np.array([int(row[name]) for row in rows], dtype=np.int64) for name in columns))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has lengths that are no whole numbers: {error}") from None


def read_arrivals(path: Path) -> np.ndarray:
    """Recorded arrival times of a trace file, seconds since its first request, shape (n,), in its order.

    Raises ValueError where the file has no times (some traces kept only lengths and say "XXX").
    """
    rows, (column, *_) = _rows(path)
    try:
        if column == "TIMESTAMP":  # cut to microseconds: Python reads no seventh digit
            moments = [datetime.fromisoformat(row[column][:26]) for row in rows]
            return np.array([(moment - moments[0]).total_seconds() for moment in moments])
        seconds = np.array([float(row[column]) for row in rows])
    except (KeyError, ValueError):
        raise ValueError(f"{path} has no arrival times ({column})") from None
    return seconds - seconds[0]


def _rows(path: Path) -> tuple[list[dict[str, str]], tuple[str, str, str]]:
    """All rows, and the names of the columns of arrival, prompt and output."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for columns in _COLUMNS:
        if rows and set(columns[1:]) <= rows[0].keys():
            return rows, columns
    needed = " or ".join(f"{prompt} and {output}" for _, prompt, output in _COLUMNS)
    raise ValueError(f"{path} has no requests with the columns {needed}")


QUANTILES = Path(__file__).with_name("length_quantiles.csv")  # written by length_quantiles.py from the traces
TABLED = 2048  # tokens; the tables are made of requests with fewer, which is the context of OPT


def quantile_lengths(trace: str, rng: np.random.Generator, n: int) -> Lengths:
    """Lengths drawn from the quantile table of a trace, shape (n,).

    A Gaussian copula with the trace's rank correlation joins the two margins. The sum is not bounded as in the trace.
    Raises KeyError naming the traces that have a table.
    """
    with QUANTILES.open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    table = [row for row in rows if row["trace"] == trace]
    if not table:
        raise KeyError(f"no quantile table for {trace!r}; there is {sorted({row['trace'] for row in rows})}")
    probability = np.array([float(row["probability"]) for row in table])
    spearman = float(table[0]["spearman"])
    correlation = 2 * np.sin(np.pi * spearman / 6)  # Pearson of the normals that gives this rank correlation
    normal = rng.standard_normal((2, n))
    normal[1] = correlation * normal[0] + np.sqrt(1 - correlation**2) * normal[1]
    margins = []
    for name, z in zip(("prompt", "output"), normal, strict=True):
        margin = QuantileTable(probability, np.array([float(row[name]) for row in table]))
        margins.append(np.maximum(1, np.rint(margin.at(_normal_cdf(z)))).astype(np.int64))
    return Lengths(*margins)


def _bounded(drawn: Lengths, rng: np.random.Generator, total: int) -> Lengths:
    """The same lengths with every sum below `total`: pairs above it swap outputs with others that leave both below.

    That keeps both margins as they are, where cutting or drawing again would shorten them; the rank correlation falls
    a little (by 0.15 for the arXiv trace, where one pair in fifteen is concerned, less elsewhere). What finds no
    partner in a hundred rounds is cut.
    """
    prompt, output = np.minimum(drawn.prompt, total - 2), drawn.output.copy()
    for _ in range(100):
        over = np.flatnonzero(prompt + output >= total)
        if not len(over):
            break
        for one, other in zip(over, rng.integers(len(prompt), size=len(over)), strict=True):
            if prompt[one] + output[other] < total and prompt[other] + output[one] < total:
                output[one], output[other] = output[other], output[one]
    return Lengths(prompt, np.minimum(output, total - 1 - prompt))


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    """Standard normal distribution function; error below 1e-6 (Abramowitz and Stegun 26.2.17), without SciPy."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    upper = poly * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return np.where(z > 0, 1 - upper, upper)


def _lognormal(rng: np.random.Generator, n: int, mu: float, sigma: float, low: int, high: int) -> np.ndarray:
    return np.clip(rng.lognormal(mu, sigma, n), low, high).astype(np.int64)


def _chat(rng: np.random.Generator, n: int) -> Lengths:
    """ShareGPT with its turns joined: mean prompt about 375, 90th percentile about 812 tokens."""
    return Lengths(_lognormal(rng, n, 5.6, 0.85, 4, 1600), _lognormal(rng, n, 4.95, 0.85, 4, 900))


def _code(rng: np.random.Generator, n: int) -> Lengths:
    """HumanEval: short prompts, mean output about 98 tokens."""
    prompt = np.clip(rng.normal(171, 70, n), 30, 400).astype(np.int64)
    return Lengths(prompt, _lognormal(rng, n, 4.4, 0.6, 1, 2000))


def _summarisation(rng: np.random.Generator, n: int) -> Lengths:
    """LongBench cut to the context of OPT: prompts of 1,500 to 1,990 tokens, mean output about 90 tokens."""
    prompt = rng.integers(1500, 1991, n)
    return Lengths(prompt, np.minimum(_lognormal(rng, n, 4.2, 0.8, 1, 2000), 2047 - prompt))


# Distributions for data sets whose text cannot be shipped; parameters are this project's estimates of
# their length statistics as DistServe (OSDI 2024, Section 6.1) describes them.
SYNTHETIC: dict[str, Callable[[np.random.Generator, int], Lengths]] = {
    "sharegpt-like": _chat,
    "humaneval-like": _code,
    "longbench-like": _summarisation,
}


ROUNDS = 1000  # of drawing conversations, before a bound on their length counts as impossible


def joined_turns(
    turns: Lengths, rng: np.random.Generator, n: int, most: int = 9, total: int = 2048
) -> Lengths:
    """Requests of `n` conversations whose earlier messages are part of the prompt.

    turns: lengths of single (human, answer) exchanges. A conversation is a row of exchanges drawn from them; its
    first k messages, k uniform in 1..most, are the prompt and the next message is the output; requests of `total`
    tokens or more are dropped. That is the preparation of ShareGPT in LLMServe/DistServe
    (simdistserve/prepare-dataset.py), on conversations of at most 10 messages; the means come out at about 765 and
    217 tokens. ValueError where (next to) no request is that short.
    """
    if n < 1 or most < 1:
        raise ValueError(
            f"{n} requests of up to {most} earlier messages were asked for; ask for at least one"
        )
    kept: list[np.ndarray] = []
    while sum(len(rows) for rows in kept) < n:
        if len(kept) == ROUNDS:
            raise ValueError(
                f"{ROUNDS} rounds of conversations gave too few requests below {total} tokens; allow longer ones"
            )
        chosen = rng.integers(len(turns.prompt), size=(2 * n, most // 2 + 1))
        messages = np.stack([turns.prompt[chosen], turns.output[chosen]], axis=2).reshape(2 * n, -1)
        k = rng.integers(1, most + 1, 2 * n)
        row = np.arange(2 * n)
        pairs = np.stack([np.cumsum(messages, axis=1)[row, k - 1], messages[row, k]], axis=1)
        kept.append(pairs[pairs.sum(axis=1) < total])
    prompt, output = np.concatenate(kept)[:n].T
    return Lengths(prompt, output)


def draw_lengths(
    name: str, rng: np.random.Generator, n: int, path: Path | None = None, total: int = TABLED
) -> Lengths:
    """`n` pairs of lengths with fewer than `total` tokens each.

    name: of a synthetic distribution, or of a trace, or of a trace of single exchanges followed by "-joined" (see
    joined_turns). With `path`, the trace itself is drawn from; without it, the committed quantile table of the
    trace. Raises KeyError for an unknown name, ValueError for a `total` that the tables do not reach, or that leaves
    nothing of the trace.
    """
    if name in SYNTHETIC:
        return _bounded(SYNTHETIC[name](rng, n), rng, total)
    if name.endswith("-joined"):
        turns = draw_lengths(name.removesuffix("-joined"), rng, 20_000, path, total)
        return joined_turns(turns, rng, n, total=total)
    if path is not None:
        kept = read_trace(path).within(total)
        if not len(kept.prompt):
            raise ValueError(f"{path} has no request with fewer than {total} tokens")
        return kept.sample(rng, n)
    if not 2 < total <= TABLED:
        raise ValueError(
            f"the quantile tables hold requests below {TABLED} tokens, {total} needs the trace itself"
        )
    return _bounded(quantile_lengths(name, rng, n), rng, total)
