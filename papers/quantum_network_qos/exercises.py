"""The notebook's exercises and their solutions."""

import numpy as np

from common.lab.exercises import Exercise
from common.scheduling import periodic
from papers.quantum_network_qos.demands import draw_demands, tasks_of
from papers.quantum_network_qos.esss import find_protocol
from papers.quantum_network_qos.links import SLOT
from papers.quantum_network_qos.mapping import Timing
from papers.quantum_network_qos.replay import run_success
from papers.quantum_network_qos.topologies import Qubits, topology


def fastest(communication: int, fidelity: float = 0.75) -> float:
    """Pairs per second of the fastest protocol between two users of the star."""
    network = topology("star", qubits=Qubits(communication, 3))
    found = find_protocol(network, "0", "1", fidelity, Timing())
    return 0.0 if found is None else 1 / (found.duration * SLOT)


def accepted_rate(communication: int, fidelity: float = 0.75, load: float = 40.0) -> float:
    """Throughput (ebit/s) that non-block NP-EDF accepts of one task set on the star."""
    network = topology("star", qubits=Qubits(communication, 3))
    demands = draw_demands(network, fidelity, load, np.random.default_rng(0), Timing())
    schedule = periodic.admit(tasks_of(demands, network, Timing()), periodic.non_block_np_edf)
    return sum(1 / (task.period * SLOT) for task in periodic.accepted_tasks(schedule))


def delivered_share(covers: float, fidelity: float = 0.75) -> float:
    """The chance that one run on the star delivers its pair, where a reservation covers this share of attempts."""
    timing = Timing(covers=covers)
    found = find_protocol(topology("star"), "0", "1", fidelity, timing)
    return 0.0 if found is None else run_success(found.protocol, timing)


EXERCISES = {
    "exercise-1": Exercise(
        question=(
            "Give the star's nodes two communication qubits. How many times as fast is the fastest protocol at "
            "fidelity 0.75?"
        ),
        hint="`fastest(2) / fastest(1)`: the repeater can then make both of its links at once.",
        answer=lambda lab: fastest(2) / fastest(1),
        tolerance=0.01,
    ),
    "exercise-2": Exercise(
        question="And how many times as much load is accepted (one task set, non-block NP-EDF)?",
        hint="`accepted_rate(2) / accepted_rate(1)`; is it the same factor?",
        answer=lambda lab: accepted_rate(2) / accepted_rate(1),
        tolerance=0.01,
    ),
    "exercise-3": Exercise(
        question="Reservations that cover 90% of each link's attempts: with which chance does a run deliver its pair?",
        hint="`delivered_share(0.0)` is what the mean time gives; two links must both be there.",
        answer=lambda lab: delivered_share(0.9),
        tolerance=0.01,
    ),
}
