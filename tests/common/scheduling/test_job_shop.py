"""The job-shop simulator against CP-SAT, a naive clock of step 1, and a verifier that knows neither."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import DataError, fetch
from common.scheduling import job_shop_events as events
from common.scheduling.dispatching import RULES, dispatch, random_rule
from common.scheduling.job_shop import KINDS, Instance, Shop, benchmark, random_instance, wait_for_cycle
from common.scheduling.job_shop_check import violations
from common.scheduling.machine_failures import Failures, draw_failures

TWO = Instance(np.array([[3, 2], [4, 5]]), np.array([[0, 1], [1, 0]]))  # two jobs that must change places


def needs_benchmarks() -> None:
    try:
        fetch("job-shop-benchmarks")
    except DataError as error:
        pytest.skip(str(error))


def checked(shop: Shop) -> list[str]:
    made = shop.schedule()
    pauses = shop.failures is not None and shop.failures.mode == "any time"
    instance = shop.instance
    return violations(
        instance.durations, instance.machines, made.starts, made.releases, shop.kind, made.downs, pauses
    )


def finished(instance: Instance, rng: np.random.Generator, **options: object) -> Shop:
    shop = Shop(instance, **options)  # type: ignore[arg-type]
    while not shop.done:
        if shop.may_wait and shop.can_wait and rng.random() < 0.3:
            shop.wait()
        else:
            shop.take(int(rng.choice(shop.candidates)))
    return shop


def test_two_jobs_change_places_at_one_instant() -> None:
    shop = Shop(TWO)
    assert shop.done and shop.swaps == 1 and shop.longest_swap == 2
    made = shop.schedule()
    # both machines are held from 0; job 0 is done at 3, job 1 at 4: they swap at 4, then 2 and 5 units
    assert made.starts.tolist() == [[0, 4], [0, 4]] and shop.makespan == 9
    assert made.releases.tolist() == [[4, 6], [4, 9]] and made.swaps.tolist() == [[0, 1], [0, 1]]


def test_without_swap_the_same_jobs_are_stuck() -> None:
    shop = Shop(TWO, "blocking")
    assert shop.done and shop.deadlocked
    assert sorted(wait_for_cycle(shop)) == [0, 1]
    with pytest.raises(ValueError, match="deadlock"):
        _ = shop.makespan


def test_with_buffers_nobody_swaps() -> None:
    shop = Shop(TWO, "ordinary")
    assert shop.swaps == 0 and shop.schedule().releases.tolist() == [[3, 6], [4, 9]]


@pytest.mark.parametrize("size", [3, 4, 5, 7])
def test_a_cycle_of_any_length_moves_at_once(size: int) -> None:
    machines = np.array([[(j + k) % size for k in range(size)] for j in range(size)])
    instance = Instance(np.full((size, size), 2), machines)
    shop = Shop(instance)
    assert shop.done and shop.longest_swap == size and shop.swaps == size - 1
    assert shop.makespan == 2 * size and checked(shop) == []
    assert Shop(instance, "blocking").deadlocked


def test_a_blocked_job_holds_its_machine() -> None:
    # job 0 is done on machine 0 at 1 and waits for machine 1, which job 1 holds until 10; job 2 must wait for machine 0
    instance = Instance(np.array([[1, 1], [10, 1], [1, 1]]), np.array([[0, 1], [1, 0], [0, 1]]))
    shop = Shop(instance)
    shop.take(0)
    made = shop.schedule()
    assert made.releases[0, 0] == 10 and made.starts[2, 0] >= 10 or shop.machine == 0
    ordinary = Shop(instance, "ordinary")
    ordinary.take(0)
    while not ordinary.done:
        ordinary.take(int(ordinary.candidates[0]))
    assert ordinary.schedule().starts[2, 0] == 1


@given(
    st.integers(0, 10_000), st.sampled_from(list(KINDS)), st.integers(1, 5), st.integers(1, 5), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_every_schedule_is_valid(seed: int, kind: str, jobs: int, machines: int, may_wait: bool) -> None:
    rng = np.random.default_rng(seed)
    instance = random_instance(rng, jobs, machines, 1, 12)
    for mode in ("on take", "any time"):
        failures = draw_failures(rng, machines, 3000, 0.1, 8, mode)
        shop = finished(instance, rng, kind=kind, failures=failures, may_wait=may_wait, compile=seed % 2 == 0)
        if shop.deadlocked:
            assert kind == "blocking" and wait_for_cycle(shop)
        else:
            assert checked(shop) == []
            assert shop.makespan >= instance.lower_bound
        if kind != "swap":
            assert shop.swaps == 0


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_compiled_and_plain_clock_give_the_same_schedule(seed: int) -> None:
    made = []
    for compile in (True, False):
        rng = np.random.default_rng(seed)
        instance = random_instance(rng, 5, 4)
        failures = draw_failures(rng, 4, 5000, 0.2, 50, ("on take", "any time")[seed % 2])
        made.append(finished(instance, rng, failures=failures, compile=compile).schedule())
    assert np.array_equal(made[0].starts, made[1].starts) and made[0].downs == made[1].downs


def best_of_all(instance: Instance, kind: str, may_wait: bool) -> int:
    """The shortest makespan over every sequence of decisions."""
    best = 10**9
    todo: list[tuple[int, ...]] = [()]
    while todo:
        path = todo.pop()
        shop = Shop(instance, kind, may_wait=may_wait)
        for choice in path:
            if choice < 0:
                shop.wait()
            else:
                shop.take(choice)
        if shop.done:
            if not shop.deadlocked:
                best = min(best, shop.makespan)
            continue
        if shop.time >= best:
            continue
        todo += [(*path, int(j)) for j in shop.candidates]
        if shop.can_wait:
            todo.append((*path, -1))
    return best


@pytest.mark.parametrize("jobs, machines, instances", [(2, 2, 25), (3, 2, 20), (2, 3, 20), (3, 3, 6)])
def test_best_of_all_decisions_is_the_optimum_of_cp_sat(jobs: int, machines: int, instances: int) -> None:
    """With waiting allowed every semi-active schedule can be reached, so that the best is the optimum; without it only
    schedules in which no machine idles while a job waits for it, whose best may be longer and never shorter."""
    pytest.importorskip("ortools")
    from common.scheduling.job_shop_optimum import solve

    longer = 0
    for seed in range(instances):
        instance = random_instance(np.random.default_rng(seed), jobs, machines, 1, 9)
        for kind in ("swap", "ordinary"):
            optimum = solve(instance, kind, seconds=20)
            assert optimum.proven
            assert best_of_all(instance, kind, may_wait=True) == optimum.makespan
            busy = best_of_all(instance, kind, may_wait=False)
            assert busy >= optimum.makespan
            longer += kind == "swap" and busy > optimum.makespan
    if jobs > 2:
        assert longer > 0  # dispatching without waiting does lose something in a blocking shop


def test_failures_do_not_depend_on_decisions() -> None:
    instance = random_instance(np.random.default_rng(0), 6, 4)
    failures = draw_failures(np.random.default_rng(1), 4, 4000, 0.3)
    for rule in RULES.values():
        shop = Shop(instance, failures=failures)
        dispatch(shop, rule)
        assert checked(shop) == []
        for machine, begin, end in shop.schedule().downs:
            assert failures.table[machine, begin % failures.table.shape[1]] == end - begin


def test_higher_probability_keeps_all_failures_of_a_lower_one() -> None:
    few, many = (draw_failures(np.random.default_rng(5), 3, 1000, q).table for q in (0.05, 0.2))
    assert np.array_equal(many[few > 0], few[few > 0])
    assert (many > 0).mean() == pytest.approx(0.2, abs=0.03) and many.max() <= 50


def test_a_running_operation_pauses_in_failures_at_any_time() -> None:
    table = np.zeros((1, 100), dtype=np.int64)
    table[0, 3:7] = [4, 3, 2, 1]  # down during [3, 7)
    shop = Shop(Instance(np.array([[5]]), np.array([[0]])), failures=Failures(table, "any time"))
    assert shop.makespan == 9
    assert shop.schedule().downs == [(0, 3, 7)]


@pytest.mark.parametrize("compile", [True, False])
def test_machines_that_are_never_up_together_are_a_deadlock_and_no_endless_wait(compile: bool) -> None:
    table = np.array([[0, 0, 2, 1], [2, 1, 0, 0]])  # in turns, again and again
    failures = Failures(table, "any time")
    crossing = Instance(np.array([[1, 1], [1, 1]]), np.array([[0, 1], [1, 0]]))
    shop = Shop(crossing, "swap", failures=failures, compile=compile)
    shop.take(1)  # machine 1 has come up; job 0 holds machine 0 and waits for it too
    assert shop.deadlocked
    along = Instance(
        np.array([[9, 1]]), np.array([[0, 1]])
    )  # an operation longer than the table is no deadlock
    shop = Shop(along, "swap", failures=failures, compile=compile)
    assert not shop.deadlocked and shop.makespan == 19


def test_machines_fail_as_often_as_drawn_on_take() -> None:
    """Expected share of operations that meet a shutdown is q, and a shutdown lasts 25.5 ticks on average."""
    lasts, taken = [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        instance = random_instance(rng, 8, 6)
        shop = finished(instance, rng, failures=draw_failures(rng, 6, 5000, 0.2))
        lasts += [end - begin for _, begin, end in shop.schedule().downs]
        taken += instance.durations.size
    assert len(lasts) / taken == pytest.approx(0.2, abs=0.04) and np.mean(lasts) == pytest.approx(25.5, abs=2)


def test_decisions_are_asked_only_where_two_jobs_wait() -> None:
    rng = np.random.default_rng(0)
    shop = Shop(random_instance(rng, 6, 5))
    while not shop.done:
        assert len(shop.candidates) >= 2
        waits = [int(shop.instance.machines[j, shop.jobs[events.STARTED, j]]) for j in shop.candidates]
        assert set(waits) == {shop.machine}
        shop.take(int(rng.choice(shop.candidates)))


def test_published_optimum_of_ft06_with_buffers_and_with_swaps() -> None:
    """55 is the classical optimum; 63 the optimum of the blocking job shop with swap (Groeflin and Klinkert, 2009)."""
    needs_benchmarks()
    pytest.importorskip("ortools")
    from common.scheduling.job_shop_optimum import releases_of, solve

    instance = benchmark("ft06")
    assert instance.optimum == 55
    for kind, makespan in (("ordinary", 55), ("swap", 63)):
        optimum = solve(instance, kind, seconds=60)
        assert optimum.proven and optimum.makespan == makespan and optimum.starts is not None
        releases = releases_of(instance, optimum.starts, kind)
        assert violations(instance.durations, instance.machines, optimum.starts, releases, kind) == []


def test_rules_by_hand_on_one_decision() -> None:
    # machine 0 is asked at time 0 for jobs 0, 1 and 2; job 3 runs on machine 1
    durations = np.array([[4, 3, 2], [2, 9, 1], [3, 1, 1], [7, 1, 1]])
    machines = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 2], [1, 0, 2]])
    shop = Shop(Instance(durations, machines))
    assert shop.machine == 0 and shop.candidates.tolist() == [0, 1, 2]
    picks = {name: int(shop.candidates[np.argmax(rule(shop))]) for name, rule in RULES.items()}
    assert picks == {
        **{"SPT": 1, "LPT": 0, "FIFO": 0, "LIFO": 0, "MWKR": 1, "LWKR": 2, "LRM": 1, "SRM": 2},
        **{"MOR": 0, "LOR": 0, "STPT": 2, "LTPT": 1, "SQN": 1, "LQN": 0},
    }


def test_random_rule_is_the_same_for_the_same_generator() -> None:
    made = [
        dispatch(Shop(random_instance(np.random.default_rng(0), 6, 6)), random_rule(np.random.default_rng(1)))
        for _ in range(2)
    ]
    assert np.array_equal(made[0].starts, made[1].starts)


def test_rest_of_a_schedule_is_solved_from_where_the_shop_stands() -> None:
    pytest.importorskip("ortools")
    from common.scheduling.job_shop_optimum import solve, solve_rest

    rng = np.random.default_rng(3)
    instance = random_instance(rng, 4, 3)
    whole = solve(instance, seconds=20)
    shop = Shop(instance)
    rest = solve_rest(shop, seconds=20)
    assert rest.proven and rest.makespan >= whole.makespan
    before = rest.makespan
    while not shop.done:
        shop.take(int(rng.choice(shop.candidates)))
        now = solve_rest(shop, seconds=20)
        assert now.makespan >= before  # a decision can only take schedules away
        before = now.makespan
    assert before == shop.makespan or before < shop.makespan  # the shop does not wait, the solver may


@pytest.mark.parametrize(
    "kind, starts, releases, line",
    [
        ("swap", [[0, 3], [0, 4]], [[3, 5], [4, 9]], "holds jobs"),
        ("swap", [[0, 4], [0, 4]], [[3, 6], [4, 9]], "is released at 3 and not at 4"),
        ("swap", [[0, 2], [0, 4]], [[2, 4], [4, 9]], "before it ends"),
        ("blocking", [[0, 4], [0, 4]], [[4, 6], [4, 9]], "cycle of jobs"),
        ("ordinary", [[-1, 4], [0, 4]], [[2, 6], [4, 9]], "before time 0"),
    ],
)
def test_the_verifier_names_what_is_wrong(kind: str, starts: list, releases: list, line: str) -> None:
    found = violations(TWO.durations, TWO.machines, np.array(starts), np.array(releases), kind)
    assert any(line in one for one in found), found


def test_the_verifier_sees_starts_while_a_machine_is_down() -> None:
    starts, releases = np.array([[0, 4], [0, 4]]), np.array([[4, 6], [4, 9]])
    downs = [(1, 3, 5)]  # job 1 runs there until 4, job 0 enters at 4
    found = violations(TWO.durations, TWO.machines, starts, releases, "swap", downs)
    assert any("is down until 5" in one for one in found) and any(
        "runs while machine 1" in one for one in found
    )


@pytest.mark.parametrize(
    "durations, machines, message",
    [
        ([[1, 2]], [[0, 1], [1, 0]], "must both be"),
        ([[0, 2]], [[0, 1]], "at least one"),
        ([[1, 2]], [[0, 0]], "exactly once"),
    ],
)
def test_a_malformed_instance_is_refused(durations: list, machines: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Instance(np.array(durations), np.array(machines))


def test_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="kind of shop"):
        Shop(TWO, "open")
    with pytest.raises(ValueError, match="failures of 1 machines"):
        Shop(TWO, failures=draw_failures(np.random.default_rng(0), 1, 10, 0.1))
    with pytest.raises(ValueError, match="probability"):
        draw_failures(np.random.default_rng(0), 1, 10, 1.5)
    with pytest.raises(ValueError, match="does not wait"):
        Shop(TWO).take(0)
    with pytest.raises(ValueError, match="may not wait"):
        Shop(TWO).wait()


def test_jumping_gives_the_schedule_of_a_clock_of_step_one() -> None:
    """The naive clock of pyjssp: every tick, finish, move until nothing changes, first candidate first."""
    for seed in range(20):
        instance = random_instance(np.random.default_rng(seed), 4, 3, 1, 9)
        shop = Shop(instance)
        while not shop.done:
            shop.take(int(shop.candidates[0]))
        assert np.array_equal(naive(instance), shop.schedule().starts)


def naive(instance: Instance) -> np.ndarray:
    n, m = instance.durations.shape
    starts = np.full((n, m), -1)
    at, holds = [-1] * n, dict.fromkeys(range(m), -1)  # operation at hand; job on a machine
    for now in itertools.count():
        ended = [at[j] >= 0 and starts[j, at[j]] + instance.durations[j, at[j]] <= now for j in range(n)]
        for j in range(n):
            if ended[j] and at[j] == m - 1 and holds[int(instance.machines[j, m - 1])] == j:
                holds[int(instance.machines[j, m - 1])] = -1
        if all(ended) and all(k == m - 1 for k in at):
            return starts
        ready = {j for j in range(n) if at[j] < 0 or (ended[j] and at[j] < m - 1)}
        moved = True
        while moved:
            moved = False
            wants = {j: int(instance.machines[j, at[j] + 1]) for j in ready}
            group = next(
                (
                    cycle
                    for size in range(2, n + 1)
                    for cycle in itertools.permutations(sorted(ready), size)
                    if all(holds[wants[a]] == b for a, b in zip(cycle, (*cycle[1:], cycle[0]), strict=True))
                ),
                None,
            )
            if group is None:
                group = next(
                    ((j,) for b in range(m) if holds[b] < 0 for j in sorted(ready) if wants[j] == b),
                    None,
                )
            if group is not None:
                moved = True
                for j in group:
                    if at[j] >= 0:
                        holds[int(instance.machines[j, at[j]])] = -1
                for j in group:
                    at[j] += 1
                    starts[j, at[j]] = now
                    holds[int(instance.machines[j, at[j]])] = j
                    ready.discard(j)
    raise AssertionError("the clock stands still")
