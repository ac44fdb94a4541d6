"""What the claims of Llumnix read: sixteen simulated instances under load, and requests moved between two processes.

Simulated, from the same latency model and the same requests for all policies: latencies and preemption at the
knee of each trace (Section 6.3), priorities (6.4) and auto-scaling (6.5). In two processes on this machine: what a
migration stops, by method and length (6.2).
"""

from common.lab.runtime import Observations, Runtime
from papers.llumnix import priority_study, scaling_study, serving_study
from papers.llumnix.config import Config
from papers.llumnix.runs import find_rates


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed and setting."""
    seen = Observations()
    studies = [one for one in (serving_study, priority_study, scaling_study) if lab.wants(*one.METRICS)]
    wanted = []  # all rates that the run will need, so that they are searched side by side
    if serving_study in studies:
        wanted += [(trace, level) for trace in config.traces for level in config.levels]
    wanted += [(one.TRACE, min(config.levels)) for one in studies if one is not serving_study]
    find_rates(config, lab, list(dict.fromkeys(wanted)))
    for study in studies:
        study.observe(config, lab, seen)
    if lab.wants(
        "stopped_growth", "stall_gain_over_recompute", "moved_and_identical", "decoded_meanwhile", "token_gap"
    ):
        from papers.llumnix import migration_study  # brings torch, which the simulations do without

        migration_study.observe(config, lab, seen)
    seen.add("instances_served", config.instances)
    return seen
