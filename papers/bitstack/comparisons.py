"""The paper's comparisons as tasks and observations: equal bytes, ablations, orders, and greedy on a few layers.

Each part names the tasks that it needs and observes once they are done, so that all of them share one pool of
processes. A part is None where no claim of a control's run reads it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from common.lab.runtime import Observations
from papers.bitstack import evaluation
from papers.bitstack.evaluation import Greedy, Held, Loaded, Recipe, Task, Text, held
from papers.bitstack.measurements import PAPER_RANK
from papers.bitstack.study import Made, Study, rival_task
from papers.bitstack.universal_stack import Stack, random_order

Part = tuple[list[Task], Callable[[], None]]  # what must be computed, and what is observed then
NATS = float(np.log(10))  # of an order of magnitude
SHUFFLED_WITH = 0  # seed of the permutation of blocks, a negative control
# metric: rival in whose bytes BitStack is loaded, how they are compared
ORDERS_OF_MAGNITUDE = {
    "orders_rtn_2": "rtn-2-64",
    "orders_gptq_2": "gptq-2-64",
    "orders_awq_2": "awq-2-64",
    "orders_rtn_3_rows": "rtn-3-0",
    "orders_gptq_3_rows": "gptq-3-0",
    "orders_rtn_3": "rtn-3-64",
    "orders_gptq_3": "gptq-3-64",
}
RATIOS = {
    "ratio_awq_3": "awq-3-64",
    "ratio_awq_4": "awq-4-64",
    "ratio_rtn_4": "rtn-4-64",
    "ratio_nf4": "nf4-4-64",
}
GAIN = ("rtn-2-64", "rtn-4-64")  # whose bytes stand for two bits and for four
ABLATED: dict[str, dict[str, Any]] = {
    "no scaling": {"scaling": "none"},
    "no absolute values": {"absolute": False},
    "neither": {"scaling": "none", "absolute": False},
}
AT_RIVALS = (*ORDERS_OF_MAGNITUDE, *RATIOS, "ratio_full_4", "orders_2_to_4", "orders_first_to_4")
GREEDY = ("greedy_gain", "average_share")


def perplexities(study: Study, seen: Observations) -> None:
    """Observe all that rests on perplexities: long tasks first, then every state of every store at once."""
    study.make(recipes(study))
    study.results(long_tasks(study), "sorting and rivals")
    made = [make(study, seen) for make in (budgets, orders, subset, ablations)]
    parts = [part for part in made if part is not None]
    study.results([task for tasks, _ in parts for task in tasks], "perplexity")
    for _, observe in parts:
        observe()


def recipes(study: Study) -> list[Recipe]:
    """All stores that this run looks at."""
    wants, found = study.lab.wants, [study.intact()]
    if wants(*AT_RIVALS, "memory_rank"):
        found.append(study.recipe())
    if wants("scaling_gain", "absolute_gain"):
        found += [own_ablated(study), *ablated(study).values()]
    if wants("block_bits"):
        found.append(study.recipe(k=PAPER_RANK, blocks=1))
    return list(dict.fromkeys(found))


def ablated(study: Study) -> dict[str, Recipe]:
    """The ablations that are asked for, or, in a control's run, those that its claim reads."""
    read = {"no scaling": "scaling_gain", "no absolute values": "absolute_gain"}
    changes = ABLATED | {n: {"k": int(n[4:])} for n in study.config.ablations if n.startswith("k = ")}
    wanted = [n for n in study.config.ablations if study.lab.wants(read.get(n, "ablated"))]
    return {n: replace(study.intact(), **changes[n]) for n in wanted}


def own_ablated(study: Study) -> Recipe:
    """What the ablations are compared with; in a control's run only as many blocks as its claim reads."""
    known = [study.intact(), *ablated(study).values()]  # decomposed already
    whole = study.lab.wants("ablated") or study.recipe() in known
    return study.recipe() if whole else study.recipe(blocks=study.config.levels[0])


def long_tasks(study: Study) -> list[Task]:
    """Sorting, greedy sorting and quantising, longest first."""
    tasks: list[Task] = []
    if study.lab.wants(*AT_RIVALS):
        tasks += [rival_task(study, rival) for rival in sorted(wanted_rivals(study), key=_slowest)]
    if study.lab.wants(*GREEDY) and study.config.greedy_layers:
        names, others, tokens = subset_of(study)
        tasks.insert(0, greedy_task(study))
        tasks += [task for level in study.sort_tasks(names, others, tokens) for task in level]
    if study.lab.wants(*AT_RIVALS, *GREEDY, "memory_rank", "sorting_gain"):
        tasks += [task for level in study.sort_tasks(study.names()) for task in level]
    return tasks


def wanted_rivals(study: Study) -> list[str]:
    """Those of the config that a wanted metric reads, and the model as it is."""
    metrics = ORDERS_OF_MAGNITUDE | RATIOS
    read = {rival for metric, rival in metrics.items() if study.lab.wants(metric)}
    return [*(rival for rival in study.config.rivals if rival in read), "fp16"]


def _slowest(rival: str) -> int:
    return ["gptq", "awq", "nf4", "rtn", "fp16"].index(rival.partition("-")[0])


def loaded(made: Made, states: list[Held], text: Text, shuffle: int | None = None) -> list[Loaded]:
    """A task for each of these states of a store; equal ones are computed once."""
    store = replace(made.store, shuffle=shuffle)
    return [Loaded(store, state, text) for state in states]


def losses(study: Study, tasks: list[Loaded]) -> np.ndarray:
    """What such tasks found: nats a token, shape (states, windows)."""
    return np.array([study.result(task) for task in tasks])


def budgets(study: Study, seen: Observations) -> Part | None:
    """BitStack in each rival's bytes, and over evenly spaced budgets."""
    wants, config = study.lab.wants, study.config
    equal, spaced = wants(*AT_RIVALS), wants("memory_rank")
    if not (equal or spaced):
        return None
    own = study.store(study.recipe())
    stack = study.stack(made=own)
    names = [*dict.fromkeys([*wanted_rivals(study), *GAIN])] if equal else []
    shuffle = SHUFFLED_WITH if config.shuffle else None
    at_rivals = {name: study.rival_bytes(name) for name in names if name != "fp16"}
    grid = evenly(stack, config.budgets) if spaced else np.array([])
    prefixes = [stack.fitting(budget) for budget in [*grid, *at_rivals.values()]]
    tasks = loaded(own, [held(stack.counts(p)) for p in prefixes], study.test, shuffle)
    least = loaded(own, [held(stack.counts(0))], study.test, shuffle)

    def observe() -> None:
        found = losses(study, tasks)
        curve, ours = found[: len(grid)], dict(zip(at_rivals, found[len(grid) :], strict=True))
        sizes = [stack.base + sum(stack.nbytes[name] for name in stack.order[:p]) for p in prefixes]
        for size, row in zip(sizes, found, strict=True):
            for seed, value in zip(study.lab.seeds, row, strict=True):
                seen.add("log_perplexity", value, seed, system="BitStack", mb=size / 1e6)
        if equal:
            for name, count in stack.counts(stack.fitting(at_rivals[GAIN[0]])).items():
                layer, _, matrix = name.partition(".")
                seen.add("blocks_in_two_bits", count, layer=int(layer), matrix=matrix)
        if spaced:
            for at, seed in enumerate(study.lab.seeds):
                seen.add("memory_rank", rank_correlation(np.array(sizes[: len(grid)]), -curve[:, at]), seed)
        if equal:
            against(study, seen, at_rivals, ours, losses(study, least)[0])

    by_size: list[Task] = [*sorted(least + tasks, key=lambda task: sum(count for _, count in task.state))]
    return by_size, observe


def against(
    study: Study, seen: Observations, nbytes: dict[str, int], ours: dict[str, np.ndarray], first: np.ndarray
) -> None:
    """Differences to each rival in its bytes, and to one block everywhere, `first`."""
    theirs = {name: np.array(study.result(rival_task(study, name))) for name in wanted_rivals(study)}
    for name, row in theirs.items():
        mb = (study.full_bytes if name == "fp16" else nbytes[name]) / 1e6
        for seed, value in zip(study.lab.seeds, row, strict=True):
            seen.add("log_perplexity", value, seed, system=name, mb=mb)
    found: dict[str, np.ndarray] = {}
    for metric, rival in ORDERS_OF_MAGNITUDE.items():
        if rival in theirs:
            found[metric] = (theirs[rival] - ours[rival]) / NATS
    for metric, rival in RATIOS.items():
        if rival in theirs:
            found[metric] = np.exp(ours[rival] - theirs[rival])
    found["ratio_full_4"] = np.exp(ours[GAIN[1]] - theirs["fp16"])
    found["orders_2_to_4"] = (ours[GAIN[0]] - ours[GAIN[1]]) / NATS
    found["orders_first_to_4"] = (first - ours[GAIN[1]]) / NATS
    for metric, values in found.items():
        for seed, value in zip(study.lab.seeds, values, strict=True):
            seen.add(metric, value, seed)


def ablations(study: Study, seen: Observations) -> Part | None:
    """Without scaling, without absolute values, without both: equal blocks everywhere, so equal bytes."""
    if not study.lab.wants("scaling_gain", "absolute_gain"):
        return None
    config = study.config
    made = {"BitStack": study.store(own_ablated(study))}
    made |= {name: study.store(recipe) for name, recipe in ablated(study).items()}
    levels = config.levels if study.lab.wants("ablated") else config.levels[:1]
    tasks = {name: loaded(m, [m.uniform(level) for level in levels], study.test) for name, m in made.items()}

    def observe() -> None:
        found = {name: losses(study, parts) for name, parts in tasks.items()}
        for name, rows in found.items():
            shapes = made[name].shapes.values()
            bits = 8 * sum(s.nbytes for s in shapes) / sum(s.parameters for s in shapes)
            for level, row in zip(levels, rows, strict=True):
                for seed, value in zip(study.lab.seeds, row, strict=True):
                    seen.add("ablated", value, seed, system=name, blocks=level, bits=bits * level)
        for metric, name in (("scaling_gain", "no scaling"), ("absolute_gain", "no absolute values")):
            if name in found:
                for seed, value in zip(study.lab.seeds, found[name][0] - found["BitStack"][0], strict=True):
                    seen.add(metric, value / NATS, seed)

    return [task for parts in tasks.values() for task in parts], observe


def orders(study: Study, seen: Observations) -> Part | None:
    """The sorted stack against random ones, one a seed: mean log perplexity over evenly spaced budgets."""
    if not study.lab.wants("sorting_gain"):
        return None
    own, lab = study.store(study.intact()), study.lab
    groups = evaluation.groups_of(study.names(), study.config.sort_by)
    ours = study.stack()
    grid = evenly(ours, study.config.budgets)[::2]
    ends = [held(ours.counts(0)), held(ours.counts(len(ours.order)))]
    kinds = study.config.shuffles
    tasks: dict[object, list[Loaded]] = {
        "ours": loaded(own, [held(ours.counts(ours.fitting(b))) for b in grid[1:-1]], study.test),
        "ends": loaded(own, ends, study.test),
    }
    for seed, window in zip(lab.seeds, study.test, strict=True):
        for kind in kinds:
            rng = lab.rng(seed, "order", kind)
            drawn = random_order(groups, study.config.blocks, rng, within_levels=kind != "random")
            stack = study.stack(drawn)
            states = [held(stack.counts(stack.fitting(b))) for b in grid[1:-1]]
            tasks[kind, seed] = loaded(own, states, (window,))

    def observe() -> None:
        first, last = losses(study, tasks["ends"])
        mine = losses(study, tasks["ours"])
        for at, seed in enumerate(lab.seeds):
            curves = {"sorted": mine[:, at]}
            curves |= {kind: losses(study, tasks[kind, seed])[:, 0] for kind in kinds}
            areas = {}
            for kind, middle in curves.items():
                whole = [first[at], *middle, last[at]]
                areas[kind] = area(grid, np.array(whole))
                for budget, value in zip(grid, whole, strict=True):
                    seen.add("by_order", value, seed, order=kind, mb=budget / 1e6)
            seen.add("sorting_gain", areas["random"] - areas["sorted"], seed)
            for kind in kinds:
                seen.add("sorting_gain_over", areas[kind] - areas["sorted"], seed, order=kind)

    return [task for parts in tasks.values() for task in parts], observe


def subset_of(study: Study) -> tuple[tuple[str, ...], Held, int]:
    """The matrices of the last layers that are sorted greedily, all blocks of the others, and tokens to sort by."""
    config = study.config
    first = evaluation.LAYERS - config.greedy_layers
    inside = tuple(name for name in study.names() if int(name.partition(".")[0]) >= first)
    others = held({name: config.blocks for name in study.names() if name not in set(inside)})
    return inside, others, config.greedy_tokens


def greedy_task(study: Study) -> Greedy:
    """Greedy sorting of the last layers, a layer at a time."""
    names, others, tokens = subset_of(study)
    text = tuple(window[:tokens] for window in study.sorting)
    return Greedy(study.store(study.intact()).store, evaluation.groups_of(names, "block"), others, text)


def subset(study: Study, seen: Observations) -> Part | None:
    """Greedy, average and random orders of the last layers, the others complete."""
    if not study.lab.wants(*GREEDY) or not study.config.greedy_layers:
        return None
    own, config = study.store(study.intact()), study.config
    names, others, tokens = subset_of(study)
    groups = evaluation.groups_of(names, "block")
    average = study.sorted_by(study.sort_tasks(names, others, tokens))
    greedy = study.result(greedy_task(study))
    drawn = {"average": study.turned(average), "greedy": study.turned(greedy), "greedy, intact": greedy}
    for i in range(config.random_orders):
        drawn[f"random {i}"] = random_order(groups, config.blocks, study.lab.rng(i, "subset"))
    nbytes = {name: own.shapes[name].nbytes for name in names}
    stacks = {kind: Stack(order, nbytes, sum(nbytes.values())) for kind, order in drawn.items()}
    whole = stacks["average"]
    grid = evenly(whole, config.budgets)[::2]

    def state(stack: Stack, budget: float) -> Held:
        counts = dict(others) | stack.counts(stack.fitting(budget))
        return tuple((name, counts[name]) for name in own.shapes)

    states = {kind: [state(stack, budget) for budget in grid] for kind, stack in stacks.items()}
    every = sorted({s for line in states.values() for s in line}, key=lambda s: sum(count for _, count in s))
    start = evaluation.LAYERS - config.greedy_layers
    tasks = [Loaded(own.store, state, study.test, start) for state in every]

    def observe() -> None:
        found = dict(zip(every, losses(study, tasks), strict=True))
        for at, seed in enumerate(study.lab.seeds):
            areas = {}
            for kind, line in states.items():
                curve = np.array([found[s][at] for s in line])
                areas[kind] = area(grid, curve)
                for budget, value in zip(grid, curve, strict=True):
                    seen.add("by_order_subset", value, seed, order=kind, mb=budget / 1e6)
            chance = float(np.mean([areas[kind] for kind in areas if kind.startswith("random")]))
            seen.add("greedy_gain", chance - areas["greedy"], seed)
            seen.add("average_gain", chance - areas["average"], seed)
            if (greedy_gain := chance - areas["greedy, intact"]) != 0:  # where greedy gains nothing, no share
                seen.add("average_share", (chance - areas["average"]) / greedy_gain, seed)

    return [*tasks], observe


def evenly(stack: Stack, n: int) -> np.ndarray:
    """Budgets from one block everywhere to the whole stack, bytes (n,). ValueError for an even number."""
    if n % 2 == 0 or n < 3:
        raise ValueError(f"an odd number of budgets, at least three, has a middle; {n} has none")
    sizes = stack.memory()
    return np.linspace(sizes[0], sizes[-1], n)


def area(budgets: np.ndarray, losses: np.ndarray) -> float:
    """Mean log perplexity over budgets: the area under the curve over the width."""
    return float(np.trapezoid(losses, budgets) / (budgets[-1] - budgets[0]))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, of series without ties."""
    first, second = (np.argsort(np.argsort(values)) for values in (x, y))
    return float(np.corrcoef(first, second)[0, 1])
