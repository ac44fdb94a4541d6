"""More replicas behind the load balancer (Section 4.E), and the schedule on other models and GPUs (Section 4.F)."""

from dataclasses import replace

import numpy as np

from common.lab.runtime import Observations
from common.serving.latency import LatencyModel
from common.serving.metrics import token_gaps
from papers.fastgen.agreement import throughput
from papers.fastgen.closed_loop import Slower, WithoutKnee, default_policy, draw, pass_seconds, serve
from papers.fastgen.config import Config
from papers.fastgen.deployments import DEPLOYMENTS, LLAMA_70B, Deployment
from papers.fastgen.load_sweep import loads
from papers.fastgen.splitfuse import WHOLE

CLIENTS = 16  # of a replica
SLOW = 3.0  # the slow replica of the control takes three times as long: any factor that is plainly slow
FLAT = 4096  # tokens of a pass at which the throughput of every deployment is flat


def scale(config: Config, job: tuple[int, np.random.Generator]) -> Observations:
    """Throughput of a growing number of replicas, 16 clients each; also sent where the fewest requests are."""
    seed, rng = job
    seen = Observations()
    latency = LLAMA_70B.latency()
    whole = draw(rng, max(config.replicas) * config.replica_requests, loads(config)[0])
    policy = default_policy(config.system, config.budget if config.split else WHOLE, config.fill, rng)
    for balancer in (config.balancer, "least loaded"):
        alone = 0.0
        for replicas in config.replicas:
            fleet: list[LatencyModel] = [latency] * replicas
            if config.slow_replica and replicas > 1:
                fleet[-1] = Slower(latency, SLOW)
            first = whole.first(replicas * config.replica_requests)
            trace = serve(first, replicas * CLIENTS, policy, fleet, LLAMA_70B.kv_tokens, balancer)
            rate = throughput(trace)
            alone = alone or rate
            seen.add("replica_throughput", rate, seed, replicas=replicas, balancer=balancer)
        name = "scaling_least_loaded" if balancer == "least loaded" else "scaling_per_replica"
        seen.add(name, rate / alone / max(config.replicas), seed)
    return seen


def compare_deployments(config: Config, job: tuple[int, np.random.Generator]) -> Observations:
    """Throughput and token tail under 16 clients for each model and GPU, ours over vLLM's schedule."""
    seed, rng = job
    seen = Observations()
    workload = draw(rng, max(config.requests // 2, CLIENTS), loads(config)[0])
    gains, tails = [], []
    for deployment in DEPLOYMENTS[: config.models]:
        found = []
        for system in (config.system, "vllm"):
            host_seconds = config.rival_host_seconds if system == "vllm" else deployment.host_seconds
            latency = device(config, replace(deployment, host_seconds=host_seconds))
            policy = default_policy(system, config.budget if config.split else WHOLE, config.fill, rng)
            trace = serve(workload, CLIENTS, policy, [latency], deployment.kv_tokens)
            found.append((throughput(trace), float(np.quantile(token_gaps(trace), 0.95))))
        gains.append(found[0][0] / found[1][0])
        tails.append(found[1][1] / found[0][1])
        seen.add("throughput_gain_by_model", gains[-1], seed, deployment=str(deployment))
        seen.add("tail_ratio_by_model", tails[-1], seed, deployment=str(deployment))
    seen.add("throughput_gain_everywhere", min(gains), seed)
    seen.add("tail_ratio_everywhere", min(tails), seed)
    return seen


def device(config: Config, deployment: Deployment) -> LatencyModel:
    """A deployment's passes, or those of a device without a knee that is as fast at the highest throughput."""
    latency = deployment.latency()
    return latency if config.knee else WithoutKnee(pass_seconds(latency, FLAT) / FLAT)
