"""Physics against density matrices, protocols against exhaustive search, and schedules against a verifier."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data import DataError, find
from common.lab.config import compose
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.runtime import Runtime
from common.scheduling.periodic import (
    Task,
    accepted_tasks,
    admit,
    block_np_edf,
    non_block_np_edf,
    uni_np_edf,
)
from common.scheduling.periodic_check import violations
from common.scheduling.task_graph import makespan
from papers.quantum_network_qos.config import Config
from papers.quantum_network_qos.demands import draw_demands, tasks_of
from papers.quantum_network_qos.esss import esss, find_protocol
from papers.quantum_network_qos.exercises import EXERCISES
from papers.quantum_network_qos.experiment import run
from papers.quantum_network_qos.links import FUTURE, NV_5KM, PERFECT, SLOT, read_capabilities
from papers.quantum_network_qos.mapping import (
    DoesNotFit,
    Timing,
    as_soon_as_possible,
    least_slots,
    map_to_qubits,
)
from papers.quantum_network_qos.measures import NP_EDF, on_one_set, scheduler_of
from papers.quantum_network_qos.protocols import Distil, Link, Protocol, Swap, links, nested, pumped, renamed
from papers.quantum_network_qos.replay import delivered_rate, run_success
from papers.quantum_network_qos.topologies import Network, Qubits, surfnet, topology
from papers.quantum_network_qos.werner import (
    before_pumpings,
    distil,
    levels,
    pump,
    pumpings,
    succeeds,
    swap,
    unswap,
)

TIMING = Timing()
fidelities = st.floats(0.26, 1.0)
useful = st.floats(0.51, 0.999)


def data(name: str) -> Path:
    try:
        path = find(name)
    except DataError as error:
        pytest.skip(str(error))
    if path is None:
        pytest.skip(f"the data set {name} is not on this machine")
    return path


# Werner states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, second", [(0.6, 0.6), (0.877, 0.877), (0.9, 0.7), (0.55, 0.98), (1.0, 0.8)])
def test_swap_and_distil_agree_with_density_matrices(first: float, second: float) -> None:
    q = pytest.importorskip("qutip")
    zero, one = q.basis(2, 0), q.basis(2, 1)
    bell = (q.tensor(zero, zero) + q.tensor(one, one)).unit()
    paulis = [q.qeye(2), q.sigmax(), q.sigmay(), q.sigmaz()]

    def werner(fidelity: float) -> object:
        return fidelity * bell.proj() + (1 - fidelity) / 3 * (q.tensor(q.qeye(2), q.qeye(2)) - bell.proj())

    def on(operators: dict[int, object]) -> object:
        return q.tensor([operators.get(i, q.qeye(2)) for i in range(4)])

    def cnot(control: int, target: int) -> object:
        return on({control: zero.proj()}) + on({control: one.proj(), target: q.sigmax()})

    pairs = q.tensor(werner(first), werner(second))
    # distillation: qubits A1 B1 A2 B2, CNOT at both ends, the second pair is measured and must agree
    gates = cnot(0, 2) @ cnot(1, 3)
    after = gates @ pairs @ gates.dag()
    kept = sum(on({2: state.proj(), 3: state.proj()}) @ after for state in (zero, one)).ptrace([0, 1])
    assert succeeds(first, second) == pytest.approx(kept.tr())
    assert distil(first, second) == pytest.approx(q.expect(bell.proj(), kept) / kept.tr())
    # swapping: qubits A R1 R2 B, a Bell measurement of R1 R2 and a Pauli correction at B
    total = 0.0
    for pauli in paulis:
        seen = (q.tensor(pauli, q.qeye(2)) @ bell).proj()
        measured = q.tensor(q.qeye(2), seen, q.qeye(2))
        left = (on({3: pauli}) @ measured @ pairs @ measured.dag() @ on({3: pauli}).dag()).ptrace([0, 3])
        total += q.expect(bell.proj(), left)
    assert swap(first, second) == pytest.approx(total)


@given(fidelities, fidelities)
def test_swapping_and_distilling_are_symmetric_and_stay_fidelities(a: float, b: float) -> None:
    assert swap(a, b) == pytest.approx(swap(b, a)) and distil(a, b) == pytest.approx(distil(b, a))
    assert 0 <= swap(a, b) <= 1 and 0 <= distil(a, b) <= 1 + 1e-12
    assert swap(a, 0.25) == pytest.approx(0.25)  # with a useless state nothing is left
    assert swap(a, 1.0) == pytest.approx(a)


@given(st.floats(0.26, 0.999))
def test_distilling_two_equal_pairs_gains_exactly_above_one_half(fidelity: float) -> None:
    gain = distil(fidelity, fidelity) - fidelity
    assert gain > 0 if fidelity > 0.5 + 1e-6 else gain <= 1e-6
    assert unswap(swap(fidelity, fidelity)) == pytest.approx(fidelity)


@given(useful, st.integers(0, 6))
def test_the_fidelity_before_pumping_is_the_smallest_that_works(target: float, times: int) -> None:
    before = before_pumpings(target, times)
    assert before is not None
    assert pump(before, times) >= target - 1e-12
    assert times == 0 or pump(before - 1e-6, times) < target
    assert pumpings(before, target) <= times
    assert before_pumpings(0.4, 1) is None


def test_pumping_has_a_limit_and_nesting_has_none_below_one() -> None:
    assert pumpings(0.7, 0.8) == math.inf
    assert pumpings(0.5, 0.6) == math.inf and pumpings(0.5, 0.4) == 0
    assert pumpings(0.7, 0.77) == 5  # the limit is about 0.7743
    assert levels(0.7, 0.88) == 5  # 0.735, 0.773, 0.812, 0.849, 0.884


# Networks and links -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["star", "H", "line", "symm"])
def test_paths_are_as_short_as_networkx_finds_them(name: str) -> None:
    networkx = pytest.importorskip("networkx")
    network = topology(name)
    graph = networkx.Graph(network.edges)
    for a, b in product(network.ends, repeat=2):
        path = network.path(a, b)
        assert len(path) - 1 == networkx.shortest_path_length(graph, a, b)
        assert all(graph.has_edge(*edge) for edge in zip(path, path[1:], strict=False))


def test_surfnet_has_54_repeaters_with_a_user_each() -> None:
    pytest.importorskip("networkx")
    network = surfnet(data("surfnet-topology"), FUTURE)
    assert len(network.nodes) == 108 and len(network.ends) == 54 and len(network.edges) == 118
    degree = {node: sum(node in edge for edge in network.edges) for node in network.ends}
    assert set(degree.values()) == {1}


def test_the_embedded_link_table_is_the_authors() -> None:
    path = data("nv-link-capabilities")
    for ours, theirs in zip(NV_5KM, read_capabilities(path), strict=True):
        assert ours.fidelity == pytest.approx(theirs.fidelity, abs=6e-4)
        assert ours.rate == pytest.approx(theirs.rate, abs=0.06)
    with pytest.raises(ValueError, match="no links of 7 km; it has 5, 10"):
        read_capabilities(path, 7)


def test_bad_networks_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown topology 'ring'; one of star, H, line, symm"):
        topology("ring")
    with pytest.raises(ValueError, match="node 'b' has no qubits"):
        Network((("a", Qubits()),), (("a", "b"),), ("a",))
    apart = Network((("a", Qubits()), ("b", Qubits())), (), ("a", "b"))
    with pytest.raises(ValueError, match="no path from 'a' to 'b'"):
        apart.path("a", "b")


# Protocols and their mapping ----------------------------------------------------------------------------------------


def test_a_link_is_reserved_its_mean_time_or_the_time_that_covers_a_share() -> None:
    assert [TIMING.link(c.rate) for c in NV_5KM] == [2, 2, 2, 2, 3, 3, 3, 4, 5, 8]
    assert Timing(covers=0.9).link(14.2) == math.ceil(math.log(10) / 0.142)


@pytest.mark.parametrize("fidelity, slots", [(0.55, 7), (0.6, 9), (0.65, 11), (0.7, 11), (0.75, 17)])
def test_two_links_and_a_swap_take_what_the_fastest_link_of_sufficient_fidelity_takes(
    fidelity: float, slots: int
) -> None:
    fast = min(TIMING.link(c.rate) for c in NV_5KM if swap(c.fidelity, c.fidelity) >= fidelity)
    found = find_protocol(topology("star"), "0", "1", fidelity, TIMING)
    assert found is not None
    assert found.duration == 2 * fast + TIMING.swap == slots  # the centre makes one link after the other


# the authors' code (mdskrzypczyk/LinkScheduling), run on the same networks: pairs per second by fidelity
REFERENCE = {
    "star": {0.55: 14.286, 0.6: 11.111, 0.65: 9.091, 0.7: 9.091, 0.75: 5.882, 0.8: 3.030, 0.85: 1.493},
    "symm": {0.55: 5.882, 0.6: 5.882, 0.65: 2.632, 0.7: 1.818, 0.75: 1.449, 0.8: 0.694, 0.85: 0.234},
}


@pytest.mark.parametrize("name, fidelity", [(n, f) for n, own in REFERENCE.items() for f in own])
def test_protocols_are_as_fast_as_the_authors_or_a_little_faster(name: str, fidelity: float) -> None:
    found = find_protocol(topology(name), "0", "1", fidelity, TIMING)
    assert found is not None and found.protocol.fidelity >= fidelity
    ratio = 1 / (found.duration * SLOT) / REFERENCE[name][fidelity]
    assert ratio == pytest.approx(1.0, abs=1e-3) if name == "star" else 0.999 < ratio < 1.13


def on_a_link(qubits: Qubits) -> list[Protocol]:
    """Everything between two neighbours with up to four pairs of one capability."""
    made: list[Protocol] = []
    for capability in NV_5KM:
        base = Link(("0", "1"), capability.fidelity, capability.rate)
        made += [pumped(base, k) for k in range(4)] + [nested(base, 2)]
    return made


@pytest.mark.parametrize("fidelity", [0.55, 0.7, 0.8, 0.85])
def test_no_protocol_with_equal_halves_on_two_links_is_faster(fidelity: float) -> None:
    qubits = {name: Qubits() for name in "012"}
    best = 0.0
    for half in on_a_link(Qubits()):
        joined = Swap("1", half, renamed(half, lambda place: str(int(place) + 1)))
        for k in range(4):
            protocol = pumped(joined, k)
            if protocol.fidelity < fidelity:
                continue
            try:
                best = max(best, 1 / (map_to_qubits(protocol, qubits, TIMING).duration * SLOT))
            except DoesNotFit:
                continue
    found = esss((Qubits(),) * 3, NV_5KM, fidelity, 0.0, TIMING)
    assert found is not None and found.rate >= best - 1e-9


def test_a_rate_that_no_protocol_has_is_refused() -> None:
    assert esss((Qubits(),) * 3, NV_5KM, 0.75, 5.0, TIMING) is not None
    assert esss((Qubits(),) * 3, NV_5KM, 0.75, 6.0, TIMING) is None
    assert find_protocol(topology("star"), "0", "1", 0.99, TIMING) is None


def as_task(concrete: object) -> Task:
    from common.scheduling.task_graph import occupation

    return Task("t", concrete.duration, concrete.duration, occupation(concrete.steps), (), 0, concrete.steps)


@pytest.mark.parametrize("name", ["star", "H", "line", "symm"])
@pytest.mark.parametrize("fidelity", [0.55, 0.7, 0.8])
def test_every_concrete_protocol_uses_real_qubits_once_at_a_time(name: str, fidelity: float) -> None:
    network = topology(name)
    for a, b in product(network.ends, repeat=2):
        concrete = find_protocol(network, a, b, fidelity, TIMING) if a < b else None
        if concrete is None:
            continue
        task = as_task(concrete)
        assert violations([task], admit([task], uni_np_edf)) == []
        assert least_slots(concrete.protocol, dict(network.nodes), TIMING) <= concrete.duration
        for step in concrete.steps:
            part = concrete.behind[step.name]
            nodes = sorted({qubit.rpartition("-")[0] for qubit in step.resources})
            assert nodes == sorted([part.at] if isinstance(part, Swap) else part.ends)
            if isinstance(part, Link):
                assert [f"{node}-C0" in step.resources for node in part.ends] == [True, True]
                assert len(step.keeps) == 2
            else:
                assert len(step.resources) == (2 if isinstance(part, Swap) else 4)


def test_late_links_store_no_longer_than_early_ones_and_the_end_is_not_later() -> None:
    waited = 0
    for fidelity in (0.55, 0.65, 0.75, 0.8):
        concrete = find_protocol(topology("line"), "0", "5", fidelity, TIMING)
        assert concrete is not None
        soon, behind = as_soon_as_possible(concrete.protocol, dict(topology("line").nodes), TIMING)
        early = type(concrete)(concrete.protocol, soon, behind)
        assert concrete.duration <= makespan(soon)
        waited += early.stored() - concrete.stored()
    assert waited > 0


def test_storage_and_communication_qubits_matter() -> None:
    assert find_protocol(topology("star", qubits=Qubits(1, 0)), "0", "1", 0.55, TIMING) is None
    two = find_protocol(topology("star", qubits=Qubits(2, 3)), "0", "1", 0.55, TIMING)
    assert two is not None and two.duration == 3 + 1  # both links at once
    link = Link(("0", "1"), 0.9, 50.0)
    alone = map_to_qubits(link, {"0": Qubits(1, 0), "1": Qubits(1, 0)}, TIMING)
    assert alone.steps[0].keeps == ("0-C0", "1-C0")
    with pytest.raises(DoesNotFit, match="no communication qubit left"):
        map_to_qubits(Distil(link, link), {"0": Qubits(1, 0), "1": Qubits(1, 0)}, TIMING)


def test_perfect_links_need_one_slot_whatever_the_fidelity() -> None:
    for fidelity in (0.55, 0.85, 1.0):
        found = find_protocol(topology("symm", PERFECT), "0", "1", fidelity, TIMING)
        assert found is not None and found.protocol.fidelity == pytest.approx(1.0)
        assert len(links(found.protocol)) == 3


# Demands and schedules ----------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["star", "H", "symm"]), st.sampled_from([0.55, 0.75]), st.integers(0, 99))
def test_demands_fill_the_load_with_rates_their_protocols_have(name: str, fidelity: float, seed: int) -> None:
    network = topology(name)
    demands = draw_demands(network, fidelity, 10.0, np.random.default_rng(seed), TIMING)
    offered = sum(demand.rate for demand in demands)
    assert 10.0 <= offered < 10.0 + 100 / 2**9
    tasks = tasks_of(demands, network, TIMING)
    for demand, task in zip(demands, tasks, strict=True):
        assert demand.rate < 1 / (demand.concrete.duration * SLOT)
        assert task.period & (task.period - 1) == 0 and task.period <= 512
        assert {qubit.rpartition("-")[0] for qubit in task.resources} <= set(
            network.path(demand.source, demand.target)
        )
        moved = {s.name: len(s.resources) for s in task.steps}
        assert moved == {s.name: len(s.resources) for s in demand.concrete.steps}


def test_users_that_can_not_be_served_are_passed_over() -> None:
    network = topology("line")
    assert draw_demands(network, 0.99, 5.0, np.random.default_rng(0), TIMING) == []


def test_the_load_is_spread_over_equal_qubits() -> None:
    network = topology("star")
    demands = draw_demands(network, 0.6, 20.0, np.random.default_rng(0), TIMING)
    tasks = tasks_of(demands, network, TIMING, assignment="least")
    used = {qubit for task in tasks for qubit in task.resources if qubit.startswith("3-S")}
    assert used == {"3-S0", "3-S1", "3-S2"}
    together = tasks_of(demands, network, TIMING)
    assert len({q for task in together for q in task.resources if q.startswith("3-S")}) < 3
    with pytest.raises(ValueError, match="not to 'last'"):
        tasks_of(demands, network, TIMING, assignment="last")
    private = tasks_of(demands, network, TIMING, private=True)
    assert not private[0].resources & private[1].resources
    assert len(accepted_tasks(admit(private, block_np_edf))) == len(private)


@pytest.mark.parametrize(("name", "assignment"), [("star", "least"), ("line", "most")])
def test_a_scheduler_that_ignores_stored_halves_is_caught(name: str, assignment: str) -> None:
    network = topology(name)
    caught = 0
    for seed in range(5):
        demands = draw_demands(network, 0.65, 20.0, np.random.default_rng(seed), TIMING)
        tasks = tasks_of(demands, network, TIMING, locks=False, assignment=assignment)
        blind = admit(tasks, non_block_np_edf)
        caught += bool(violations(accepted_tasks(blind), blind))
        seeing = admit(tasks_of(demands, network, TIMING, assignment=assignment), non_block_np_edf)
        assert violations(accepted_tasks(seeing), seeing) == []
    assert caught


def test_schedulers_are_compared_on_one_set() -> None:
    network = topology("symm")
    demands = draw_demands(network, 0.7, 4.0, np.random.default_rng(2), TIMING)
    found = on_one_set(tasks_of(demands, network, TIMING), ["uni", "block", "non-block"])
    names = [{task.name for task in accepted_tasks(schedule)} for schedule in found.values()]
    assert len(names) == 3 and names[0] == names[1] == names[2] != set()


# The replay ---------------------------------------------------------------------------------------------------------


def test_half_of_what_two_links_reserve_is_delivered() -> None:
    concrete = find_protocol(topology("star"), "0", "1", 0.75, TIMING)
    assert concrete is not None
    # two links of 14.2 pairs a second in eight slots of 10 ms each: (1 - e^(-14.2 x 0.08))^2
    assert run_success(concrete.protocol, TIMING) == pytest.approx((1 - math.exp(-14.2 * 0.08)) ** 2)
    better = find_protocol(topology("star"), "0", "1", 0.8, TIMING)
    assert better is not None
    assert run_success(better.protocol, TIMING, True) < run_success(better.protocol, TIMING)


def test_drawn_attempts_agree_with_the_closed_form() -> None:
    network = topology("star")
    demands = draw_demands(network, 0.8, 4.0, np.random.default_rng(0), TIMING)
    tasks = tasks_of(demands, network, TIMING)
    schedule = admit(tasks, non_block_np_edf)
    by_name = {task.name: demand for task, demand in zip(tasks, demands, strict=True)}
    turns = 4000
    for distilling in (False, True):
        rate = delivered_rate(schedule, by_name, TIMING, turns, np.random.default_rng(1), distilling)
        accepted = [by_name[task.name] for task in accepted_tasks(schedule)]
        chances = [run_success(d.concrete.protocol, TIMING, distilling) for d in accepted]
        expected = sum(d.rate * chance for d, chance in zip(accepted, chances, strict=True))
        runs = turns * sum(d.rate for d in accepted) * 5.12
        assert rate == pytest.approx(expected, abs=5 * expected / math.sqrt(runs * min(chances)))
    assert delivered_rate((), {}, TIMING, 1, np.random.default_rng(0)) == 0.0


# The experiment -----------------------------------------------------------------------------------------------------

TINY = Config(
    topologies=["star"], fidelities=[0.65, 0.8], loads=[1.0, 20.0], others=["star"], star_fidelities=[0.6, 0.7],
    compared=["symm"], protocol_fidelities=[0.55, 0.85],
    budget_fidelities=[], optimum_load=0.0, replay_fidelities=[0.75], covers=[0.0], turns=5,
    surfnet_fidelities=[],
)  # fmt: skip


def test_two_runs_give_the_same_bytes_and_no_violation() -> None:
    seen = run(TINY, Runtime((0, 1), workers=1))
    assert seen.to_json() == run(TINY, Runtime((0, 1), workers=1)).to_json()
    assert seen.values("violations") == [0.0, 0.0]
    assert len(seen.values("gain_symm_block")) == 2


def test_a_controls_run_observes_only_what_its_claims_read() -> None:
    seen = run(TINY, Runtime((0,), workers=1, wanted=["jitter_cut"]))
    assert {row.at["part"] for row in seen.rows("throughput")} == {"jitter"}
    assert "violations" not in seen.metrics


def test_on_the_star_all_schedulers_do_the_same_as_the_authors_give_qubits_away() -> None:
    network = topology("star")
    for seed in range(3):
        demands = draw_demands(network, 0.6, 20.0, np.random.default_rng(seed), TIMING)
        kept = {
            name: len(accepted_tasks(admit(tasks_of(demands, network, TIMING), scheduler)))
            for name, scheduler in NP_EDF.items()
        }
        assert kept["uni"] == kept["block"]


def test_an_order_at_random_is_the_same_for_one_seed_and_breaks_no_rule() -> None:
    network = topology("symm")
    demands = draw_demands(network, 0.6, 20.0, np.random.default_rng(0), TIMING)
    tasks = tasks_of(demands, network, TIMING)
    one, again, other = (admit(tasks, scheduler_of("block", "random", seed)) for seed in (0, 0, 1))
    assert one == again and one != other
    assert violations(accepted_tasks(one), one) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("communication=0", "out of range"),
        ("storage=-1", "out of range"),
        ("fidelities=[0.2,0.6]", "out of range"),
        ("covers=[1.0]", "out of range"),
        ("turns=0", "out of range"),
        ("budgets=[]", "has 0 items"),
        ("topologies=[]", "has 0 items"),
        ("loads=[1e6,2e6]", "out of range"),
        ("loads=[-3,5]", "out of range"),
        ("loads=[5,1]", "do not ascend"),
        ("topologies=[ring]", "none of star"),
    ],
)
def test_bad_settings_get_one_line(changes: str, message: str) -> None:
    with pytest.raises(LabError, match=message) as refused:
        compose(Project.current(), "quantum_network_qos", "smoke", [f"paper.{changes}"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", EXERCISES)
def test_exercises_have_answers(name: str) -> None:
    assert EXERCISES[name].answer(None) > 0


def test_fidelities_dealt_out_at_random_break_the_trade_off() -> None:
    dealt = Config(**{**vars(TINY), "fidelity": "random", "star_fidelities": [0.6, 0.7, 0.8]})
    seen = run(dealt, Runtime((0, 1, 2), workers=1, wanted=["tradeoff"]))
    assert min(seen.values("tradeoff")) < 0
