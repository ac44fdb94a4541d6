"""The notebook's exercises and their solutions. Each answer is computed, by the mechanism or from its units."""

from functools import partial
from typing import Any

import numpy as np

from common.lab.exercises import Exercise
from common.serving.models import model
from common.serving.schedulers import ChunkedPrefill, PrefillFirst
from common.serving.workload import Workload, draw_lengths, poisson
from papers.distserve.deployment import Parallelism, colocated
from papers.distserve.placement import Objective, phase_goodputs
from papers.distserve.scenarios import SCENARIOS, Serving, profile

REQUESTS, SEED = 600, 7


def goal(scenario: str) -> Objective:
    """The objectives of a scenario on 600 requests of a fixed seed, lengths from the committed tables."""
    chosen, rng = SCENARIOS[scenario], np.random.default_rng(SEED)
    lengths = draw_lengths(chosen.lengths, rng, REQUESTS)
    work = Workload(poisson(rng, REQUESTS), lengths.prompt, lengths.output)
    return Objective(work, chosen.slo, requests=REQUESTS, seconds=0)


def prefill_gpus_a_decode_gpu(lab: Any) -> float:
    """Goodput of one decode GPU over that of one prefill GPU, OPT-13B chat."""
    chat, alone = profile("opt-13b", Serving()), [Parallelism(1)]
    prefill, decode = (
        phase_goodputs(chat, alone, goal("chat-opt-13b"), phase)[alone[0]] for phase in ("prefill", "decode")
    )
    return decode / prefill


def gigabits_a_second(lab: Any) -> float:
    """Ten prompts of 512 tokens a second, OPT-66B."""
    return 10 * 512 * model("opt-66b").kv_bytes_per_token() * 8 / 1e9


def chunked_over_prompts_first(lab: Any) -> float:
    """Goodput of two colocated replicas on summarisation: prompts in chunks over prompts first."""
    long, aim = profile("opt-66b", Serving()), goal("summarisation-opt-66b")
    rates = [
        aim.goodput(partial(colocated, long, Parallelism(4), 2, scheduler=scheduler), 8)
        for scheduler in (ChunkedPrefill, PrefillFirst)
    ]
    return rates[0] / rates[1]


EXERCISES = {
    "exercise-1": Exercise(
        "On chat with OPT-13B, how many prefill GPUs does one decode GPU keep busy (TP1 each)?",
        "Call phase_goodputs(chat, [Parallelism(1)], goal('chat-opt-13b'), phase) for 'prefill' and 'decode': decode's "
        "goodput over prefill's.",
        prefill_gpus_a_decode_gpu,
    ),
    "exercise-2": Exercise(
        "How many gigabits a second must cross between the phases of OPT-66B at 10 requests/s of 512 tokens?",
        "A token's cache is 2 x layers x hidden size x 2 bytes; model('opt-66b').kv_bytes_per_token() knows it.",
        gigabits_a_second,
    ),
    "exercise-3": Exercise(
        "Give the colocated rival chunked prefill on summarisation. Its goodput over that of prompts first?",
        "goal('summarisation-opt-66b').goodput(build, 8) with build = partial(colocated, model, Parallelism(4), 2, "
        "scheduler=ChunkedPrefill), and once without the scheduler.",
        chunked_over_prompts_first,
    ),
}
