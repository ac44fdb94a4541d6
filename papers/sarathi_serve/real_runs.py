"""What really runs on this machine's CPU, on one thread: chunks of a pretrained model, and an engine under policies."""

import torch

from common.lab.runtime import Observations, Runtime, one_thread
from common.serving.metrics import token_gaps
from papers.sarathi_serve import chunking, mini_engine
from papers.sarathi_serve.config import Config

SMOLLM2 = "smollm2-135m-gguf"


def run(config: Config, lab: Runtime, seen: Observations) -> None:
    """Observe whatever of it is wanted."""
    with one_thread():
        if config.live_requests and lab.wants("live_tbt_ratio"):
            for seed in lab.progress(lab.seeds, "real runs"):
                serve_live(config, lab, seen, seed)
        if config.pretrained_prompt and lab.wants("chunking_error_smollm2") and lab.data(SMOLLM2):
            prefill_smollm2(config, lab, seen)


def serve_live(config: Config, lab: Runtime, seen: Observations, seed: int) -> None:
    """P99 TBT of the same requests under vLLM's policy and ours, in turn (A B B A), and whether all answers agree."""
    generator = torch.Generator().manual_seed(int(lab.rng(seed, "decoder").integers(2**31)))
    model = chunking.Decoder(chunking.SMALL, generator)
    rate = mini_engine.LOAD / mini_engine.service_seconds(model)
    requests = mini_engine.draw_requests(
        lab.rng(seed, "live"), config.live_requests, model.config.vocab, rate
    )
    turns = (config.system, "vllm", "vllm", config.system)
    runs = [(policy, mini_engine.run_policy(model, requests, policy)) for policy in turns]
    tbt, throughput, answers = {}, {}, {}
    for policy in dict.fromkeys(turns):
        tails = [mini_engine.tail(one) for name, one in runs if name == policy]
        tbt[policy], throughput[policy] = (sum(both) / len(tails) for both in zip(*tails, strict=True))
        answers[policy] = next(one.tokens for name, one in runs if name == policy)
        seen.add("live_tbt", tbt[policy], seed, system=policy)
    seen.add("live_gaps", min(len(token_gaps(one.trace)) for _, one in runs), seed)
    seen.add("live_tbt_ratio", tbt["vllm"] / tbt[config.system], seed)
    seen.add("live_throughput_ratio", throughput[config.system] / throughput["vllm"], seed)
    same = sum(a == b for a, b in zip(answers["vllm"], answers[config.system], strict=True))
    seen.add("live_same_answers", same / config.live_requests, seed)


def prefill_smollm2(config: Config, lab: Runtime, seen: Observations) -> None:
    """Chunks of a third and of a seventh of a prompt of random tokens, against one shot."""
    from common.models.smollm2 import load_smollm2

    n = config.pretrained_prompt
    model = load_smollm2(n)
    tokens = torch.from_numpy(lab.rng(0, "smollm2").integers(model.config.vocab, size=n))
    errors = [chunking.chunking_error(model, tokens, n // parts, config.keeps_past) for parts in (3, 7)]
    seen.add("chunking_error_smollm2", max(errors))
    seen.add("exact_bits", 32)  # of each number; the paper's models have 16
