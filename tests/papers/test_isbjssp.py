"""The dynamic disjunctive graph, the network on it, training, and comparisons of the paper on blocking job shops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lab.runtime import Runtime
from common.rl.graph_ppo import Settings
from common.scheduling import job_shop_events as events
from common.scheduling.job_shop import Instance, Shop, random_instance
from common.scheduling.job_shop_check import violations
from common.scheduling.machine_failures import Failures, draw_failures
from papers.isbjssp import carried_weights, decision_time, evaluation, instances
from papers.isbjssp.config import Config
from papers.isbjssp.disjunctive_graph import DOWN, FEATURES, SINCE, Graphs, blocking_edges, fixed
from papers.isbjssp.evaluation import Case, by_policy, by_rules, cases, compare
from papers.isbjssp.experiment import run
from papers.isbjssp.graph_policy import Edges, GraphPolicy
from papers.isbjssp.study import lessons_of
from papers.isbjssp.training import (
    Lessons,
    RandomShops,
    arrays,
    cost,
    reference_makespan,
    restored,
    trained,
    window_means,
)

TINY = Lessons(jobs=(4, 5), machines=(3, 4), environments=4, hidden=8, ppo=Settings(updates=2, steps=4))
# job 0 ends on machine 0 at 1 and waits for machine 1, which job 1 holds until 10; job 2 then waits for machine 0
HELD = Instance(np.array([[1, 1], [10, 1], [1, 1], [2, 2]]), np.array([[0, 1], [1, 0], [0, 1], [0, 1]]))


def policy(seed: int = 0, **options: object) -> GraphPolicy:
    return GraphPolicy(torch.Generator().manual_seed(seed), layers=2, hidden=16, **options)  # type: ignore[arg-type]


def graph(shop: Shop, jobs: int = 0, machines: int = 0) -> dict[str, torch.Tensor]:
    n, m = shop.instance.durations.shape
    graphs = Graphs(1, jobs or n, machines or m)
    graphs.write(0, shop, fixed(shop.instance))
    return graphs.tensors()


def midway(seed: int, jobs: int = 6, machines: int = 4, q: float = 0.2) -> Shop:
    """A random shop after half of its decisions."""
    rng = np.random.default_rng(seed)
    instance = random_instance(rng, jobs, machines)
    shop = Shop(instance, failures=draw_failures(rng, machines, 3000, q))
    for _ in range(3):
        if len(shop.candidates):
            before = shop.candidates
            shop.take(int(rng.choice(before)))
    if shop.done:
        shop.reset()
    return shop


def test_a_blocking_edge_lasts_from_the_end_of_an_operation_to_its_hand_over() -> None:
    shop = Shop(HELD)
    assert shop.machine == 0 and blocking_edges(shop) == []
    shop.take(
        0
    )  # at 1 job 0 is done and holds machine 0; at 10 it swaps with job 1, and nothing was asked before
    assert shop.time >= 10 and shop.schedule().releases[0, 0] == 10
    at_one = Shop(HELD, "blocking")  # without swaps it stays as it is
    at_one.take(0)
    assert at_one.deadlocked
    assert blocking_edges(at_one) == [
        *(((0, 0), (1, 1)), ((0, 0), (2, 0)), ((0, 0), (3, 0))),
        ((1, 0), (0, 1)),
    ]


def test_done_operations_are_deleted() -> None:
    shop = Shop(HELD)
    shop.take(0)
    seen = graph(shop)
    begun = shop.jobs[events.STARTED]
    for job in range(4):
        for k in range(2):
            done = shop.operations[events.RELEASE, job, k] > 0
            assert bool(seen["alive"][0, job, k]) != bool(done)
    assert torch.all(seen["features"][0][~seen["alive"][0]] == 0)
    assert begun.max() == 2


def test_a_machine_that_is_down_shows_in_its_operations() -> None:
    table = np.zeros((2, 50), dtype=np.int64)
    table[0, 0] = 30  # machine 0 goes down at once, machine 1 is asked meanwhile
    instance = Instance(
        np.array([[4, 5], [6, 7], [3, 8], [5, 5]]), np.array([[0, 1], [1, 0], [1, 0], [0, 1]])
    )
    shop = Shop(instance, failures=Failures(table))
    assert shop.machine == 1 and shop.time == 0
    shop.take(2)
    seen = graph(shop)
    down = seen["features"][0, ..., DOWN]
    on_zero = torch.from_numpy(instance.machines == 0) & seen["alive"][0]
    assert torch.equal(down > 0, on_zero if shop.time < 30 else torch.zeros_like(on_zero))
    shop.stations[events.DOWN_UNTIL, 0], shop.stations[events.DOWN_SINCE, 0] = shop.time + 5, shop.time - 10
    since = graph(shop)["features"][0, ..., SINCE][on_zero]
    assert torch.allclose(since, torch.full_like(since, 10 / (2 * instance.durations.mean())))


@given(st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_every_operation_has_one_status_and_features_of_the_size_of_one(seed: int) -> None:
    seen = graph(midway(seed))
    features, alive = seen["features"][0], seen["alive"][0]
    assert torch.equal(features[..., :4].sum(dim=-1), alive.float())
    assert bool((features >= 0).all()) and float(features.max()) < 20
    waits = features[..., FEATURES.index("waiting")] > 0
    assert torch.equal(waits, seen["waits"][0])
    candidates = [(j, int(seen["next"][0, j])) for j in torch.where(seen["allowed"][0])[0].tolist()]
    assert len(candidates) >= 2 and all(bool(waits[j, k]) for j, k in candidates)


@given(st.integers(0, 500))
@settings(max_examples=15, deadline=None)
def test_a_layer_is_what_the_edges_say_one_by_one(seed: int) -> None:
    shop = midway(seed)
    seen = graph(shop)
    layer, edges = policy(seed).layers[0], Edges(seen)
    x = seen["features"]
    packed = x.flatten(0, 2)[edges.flat]
    whole = layer(packed, packed, edges)
    alive, machine = seen["alive"][0].numpy(), shop.instance.machines
    nodes = [(int(j), int(k)) for j, k in np.argwhere(alive)]
    blocked = {waits: holds for holds, waits in blocking_edges(shop)}
    nothing = torch.zeros(len(FEATURES))
    overall = torch.stack([x[0][node] for node in nodes]).mean(dim=0)
    for row, (j, k) in enumerate(nodes):
        before = x[0, j, k - 1] if k and alive[j, k - 1] else nothing
        after = x[0, j, k + 1] if k + 1 < alive.shape[1] else nothing
        others = [x[0][o] for o in nodes if o != (j, k) and machine[o] == machine[j, k]]
        same = torch.stack(others).mean(dim=0) if others else nothing
        block = x[0][blocked[j, k]] if (j, k) in blocked else nothing
        sent = [
            torch.relu(send(one))
            for send, one in zip(layer.senders, (before, after, same, block), strict=True)
        ]
        expected = layer.update(torch.cat([x[0, j, k], x[0, j, k], *sent, torch.relu(overall)]))
        assert torch.allclose(whole[row], expected, atol=1e-5)


@given(st.integers(0, 500))
@settings(max_examples=15, deadline=None)
def test_scores_follow_a_permutation_of_jobs_and_ignore_padding(seed: int) -> None:
    shop, network = midway(seed), policy(seed)
    scores, value = network(graph(shop))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(6))
    moved = {name: tensor[:, order] for name, tensor in graph(shop).items()}
    scores_moved, value_moved = network(moved)
    assert torch.allclose(scores_moved, scores[:, order], atol=1e-5)
    assert torch.allclose(value_moved, value, atol=1e-5)
    padded, value_padded = network(graph(shop, 9, 7))
    allowed = graph(shop)["allowed"]
    assert torch.allclose(padded[:, :6][allowed], scores[allowed], atol=1e-5)
    assert torch.allclose(value_padded, value, atol=1e-5)


def test_without_messages_a_candidate_is_judged_by_its_own_features() -> None:
    shop, network = midway(3), policy(3, messages=False)
    seen = graph(shop)
    before = network(seen)[0]
    job = int(shop.candidates[0])
    other = torch.ones_like(seen["features"], dtype=torch.bool)
    other[0, job, int(seen["next"][0, job])] = False
    seen["features"][other] += 0.5
    after = network(seen)[0]
    assert torch.equal(before[0, job], after[0, job])
    assert not torch.equal(policy(3)(graph(shop))[0][0, job], policy(3)(seen)[0][0, job])


@pytest.mark.parametrize("reward", ["makespan", "idle", "waiting"])
def test_rewards_add_up_to_what_they_are_named_after(reward: str) -> None:
    rng = np.random.default_rng(1)
    shop = Shop(random_instance(rng, 6, 4))
    while not shop.done:
        shop.take(int(rng.choice(shop.candidates)))
    made, instance = shop.schedule(), shop.instance
    total = cost(shop, reward, 100.0)
    if reward == "makespan":
        assert total == pytest.approx(shop.makespan / 100)
    elif reward == "idle":
        idle = instance.stations * shop.makespan - instance.durations.sum()
        assert total == pytest.approx(idle / instance.stations / 100)
    else:
        ticks = 0
        for job in range(6):
            for now in range(int(made.ends[job].max())):
                ticks += not any(
                    made.starts[job, k] <= now < made.starts[job, k] + instance.durations[job, k]
                    for k in range(4)
                )
        assert total == pytest.approx(ticks / 6 / 100)


def test_training_shops_ask_only_where_there_is_a_choice_and_begin_anew() -> None:
    shops = RandomShops(TINY, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    ends = 0
    returns = torch.zeros(4)
    for _ in range(40):
        seen = shops.observe()
        assert bool((seen["allowed"].sum(dim=1) >= 2).all())
        choice = torch.multinomial(seen["allowed"].float(), 1, generator=generator)[:, 0]
        rewards, ended = shops.step(choice)
        returns += rewards
        ends += int(ended.sum())
    assert ends >= 4 and len(shops.ratios) == ends and 0.7 < np.mean(shops.ratios) < 1.4


def test_the_reference_is_the_mean_of_its_rules_and_leaves_the_shop_at_its_start() -> None:
    shop = Shop(random_instance(np.random.default_rng(4), 6, 5))
    before = shop.clock.copy()
    reference = reference_makespan(shop)
    made = by_rules([Case(shop.instance)], np.random.default_rng(0))
    assert reference == np.mean([made[name][0] for name in ("SPT", "MWKR", "MOR", "FIFO")])
    assert np.array_equal(shop.clock, before)


def test_the_same_seeds_train_the_same_weights() -> None:
    first, second = (trained(TINY, np.random.default_rng(3), torch.Generator().manual_seed(3)) for _ in "ab")
    begins = arrays(restored(TINY, first.weights))
    assert all(np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.curve == second.curve and len(first.curve) == 2 and first.decisions > 0
    assert all(np.array_equal(begins[name], first.weights[name]) for name in begins)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="another shape"):
        restored(TINY, arrays(policy()))


def test_carried_weights_come_back_as_they_were() -> None:
    made = trained(TINY, np.random.default_rng(3), torch.Generator().manual_seed(3))
    back, known = carried_weights.from_json(carried_weights.to_json(made, TINY, 3, 1.0, "code"))
    assert all(np.array_equal(back.weights[name], made.weights[name]) for name in made.weights)
    assert known["seed"] == 3 and known["lessons"]["jobs"] == [4, 5]


def test_carried_weights_fit_the_default_config() -> None:
    made, known = carried_weights.carried()
    assert restored(lessons_of(Config()), made.weights) is not None
    assert known["lessons"]["ppo"]["updates"] == Config().updates


@pytest.mark.parametrize("q", [0.0, 0.02, 0.2])
def test_schedules_of_the_learned_policy_pass_the_verifier(q: float) -> None:
    learned = restored(lessons_of(Config()), carried_weights.carried()[0].weights)
    rng = np.random.default_rng(5)
    shops = [random_instance(rng, *size) for size in ((6, 6), (6, 6), (10, 5))]
    given = cases(shops, q, [1])
    makespans = by_policy(learned, given)
    for one, makespan in zip(given, makespans, strict=True):
        shop = one.shop()
        assert decision_time.finish(shop, decision_time.by_policy(learned, shop)) == makespan
        made = shop.schedule()
        assert not violations(
            one.instance.durations,
            one.instance.machines,
            made.starts,
            made.releases,
            "swap",
            made.downs,
        )


def test_cases_meet_every_rule_with_the_same_shutdowns_and_nest() -> None:
    some = [random_instance(np.random.default_rng(seed), 5, 4) for seed in range(2)]
    few, many = cases(some, 0.05, [7, 8]), cases(some, 0.3, [7, 8])
    assert len(few) == 4 and len(cases(some, 0.0, [7, 8])) == 2
    for a, b in zip(few, many, strict=True):
        assert a.failures is not None and b.failures is not None
        kept = a.failures.table > 0
        assert np.array_equal(a.failures.table[kept], b.failures.table[kept])


def test_ratios_by_hand() -> None:
    one = Instance(np.array([[2, 2]]), np.array([[0, 1]]))  # lower bound 4
    two = Instance(np.array([[5, 5]]), np.array([[0, 1]]))  # lower bound 10
    rules = {"A": np.array([8.0, 20.0]), "B": np.array([4.0, 30.0]), "RANDOM": np.array([6.0, 25.0])}
    found = compare(np.array([4.0, 20.0]), rules, [Case(one), Case(two)])
    # stretches: learned (1 + 2) / 2, A (2 + 2) / 2, B (1 + 3) / 2, RANDOM (1.5 + 2.5) / 2, best a case (1 + 2) / 2
    assert (found.best, found.mean, found.random, found.portfolio) == (0.75, 0.75, 0.75, 1.0)
    assert found.beaten == 1.0 and found.learned == 1.5
    with pytest.raises(ValueError, match="one makespan a case"):
        compare(np.array([4.0]), rules, [Case(one), Case(two)])


def test_playing_side_by_side_is_playing_one_by_one() -> None:
    network = policy()
    some = cases([random_instance(np.random.default_rng(s), 5 + s % 2, 4) for s in range(6)], 0.2, [1])
    together = by_policy(network, some)
    alone = [decision_time.finish(one.shop(), decision_time.by_policy(network, one.shop())) for one in some]
    assert together.tolist() == alone


def test_replanning_without_shutdowns_comes_near_the_optimum() -> None:
    pytest.importorskip("ortools")
    from common.scheduling.job_shop_optimum import solve

    instance = random_instance(np.random.default_rng(2), 5, 3)
    best = solve(instance, seconds=20)
    assert best.proven
    planned = decision_time.finish(Shop(instance), decision_time.by_replanning(work=2.0))
    assert best.makespan <= planned <= min(by_rules([Case(instance)], np.random.default_rng(0))["SPT"])
    took = decision_time.timed(Shop(instance), decision_time.by_replanning(work=2.0), 2)
    assert len(took) == 2 and min(took) > 0


def test_the_librarys_ppo_runs_on_the_same_shops_and_masks() -> None:
    pytest.importorskip("sb3_contrib")
    from papers.isbjssp.library_reference import environment_class, library_makespans, view

    some = [Case(random_instance(np.random.default_rng(seed), 5, 3)) for seed in range(2)]
    made = library_makespans(TINY, some, 40, 0)
    rules = by_rules(some, np.random.default_rng(0))
    worst = np.max(list(rules.values()), axis=0)
    assert np.all(made > 0) and np.all(made < 2 * worst)
    environment = environment_class()(TINY, 6, some)
    seen, _ = environment.reset()
    assert np.array_equal(seen.reshape(6, -1)[:, 0] > 0, environment.action_masks())
    with pytest.raises(ValueError, match="does not wait"):
        environment.step(int(np.flatnonzero(~environment.action_masks())[0]))
    with pytest.raises(ValueError, match="does not fit"):
        view(some[0].shop(), 3)


def tiny() -> Config:
    return Config(
        **{"updates": 2, "environments": 4, "steps": 4, "jobs": [4, 5], "machines": [3, 4], "hidden": 8},
        benchmarks=["ft06", "la01"],
        larger=["la06"],
        probabilities=[0.1],
        failure_seeds=1,
        solved=["ft06"],
        solver_work=0.2,
        replanned=[],
        timed="ft06",
        timed_plans=1,
        plan_seconds=0.2,
    )


def test_two_runs_of_a_config_see_the_same_but_for_the_clock() -> None:
    pytest.importorskip("ortools")
    clocks = ("decision_ms", "plan_ms", "plans_per_decision")
    first, second = (
        [row for row in run(tiny(), Runtime([0, 1], workers=1)) if row.metric not in clocks] for _ in "ab"
    )
    assert first == second and len(first) > 50
    metrics = {row.metric for row in first}
    assert {
        "ratio_best",
        "ratio_best_interrupted",
        "ratio_best_larger",
        "message_gain",
        "deadlocks",
    } <= metrics


@pytest.mark.parametrize(
    "changed, metric, value",
    [
        ({"messages": False}, "message_gain", 1.0),
        ({"failures": False}, "slowdown_gap", 0.0),
        ({"blocking": False}, "swaps_per_job", 0.0),
        ({"blocking": False}, "blocking_price", 1.0),
        ({"swap": False}, "deadlocks", 1.0),
    ],
)
def test_with_a_mechanism_off_nothing_of_it_is_seen(changed: dict, metric: str, value: float) -> None:
    config = Config(**{**vars(tiny()), **changed})
    seen = run(config, Runtime([0], workers=1, wanted=[metric]))
    assert seen.values(metric) == [value]


def test_without_the_data_set_instances_of_the_same_size_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "published", lambda: False)
    instances.named.cache_clear()
    sizes = {
        name: instances.named(name).durations.shape for name in ("ft06", "la01", "la26", "orb03", "ta01")
    }
    instances.named.cache_clear()
    assert sizes == {
        **{"ft06": (6, 6), "la01": (10, 5), "la26": (20, 10)},
        **{"orb03": (10, 10), "ta01": (15, 15)},
    }


def test_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="does not fit a batch"):
        graph(Shop(HELD), 2, 2)
    with pytest.raises(ValueError, match="reward is"):
        cost(Shop(HELD), "money", 1.0)
    with pytest.raises(ValueError, match="mode is"):
        evaluation.cases([HELD], 0.1, [0], "never")


def test_windows_average_the_curve() -> None:
    assert window_means([1.0, 3.0, 5.0, 7.0, 9.0], 2).tolist() == [2.0, 6.0]
