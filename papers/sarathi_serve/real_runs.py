"""What really runs on this machine's CPU, on one thread: chunks, hybrid batches, and an engine under three policies."""

from dataclasses import dataclass

import torch

from common.lab.runtime import Observations, Runtime, one_thread
from papers.sarathi_serve import chunking, mini_engine

EXACT_PROMPT, EXACT_CHUNKS = 300, (1, 7, 64, 100)  # tokens
OVERHEAD_CHUNKS = (64, 128, 256)  # tokens, beside the chunk of the claim
# The published hybrid batch of 1,021 + 3 tokens, a quarter of it, and its decode batch of 4.
DECODES, CONTEXT, CHUNK = 4, 1024, 253
SMOLLM2 = "smollm2-135m-gguf"


@dataclass(frozen=True)
class Sizes:
    """The experiment's Config, as far as the real runs read it."""

    prompt: int  # tokens that are prefilled and timed; 0: nothing is timed but the engine
    longest_beside_decodes: int
    chunk: int
    requests: int  # of the engine
    pretrained_prompt: int
    keeps_past: bool
    system: str


def run(sizes: Sizes, lab: Runtime, seen: Observations) -> None:
    """Observe whatever of it is wanted, one row a seed."""
    with one_thread():
        for seed in lab.progress(lab.seeds, "real runs"):
            generator = torch.Generator().manual_seed(int(lab.rng(seed, "decoder").integers(2**31)))
            if lab.wants("chunking_error"):
                model = chunking.Decoder(chunking.TINY, generator)
                tokens = torch.randint(model.config.vocab, (EXACT_PROMPT,), generator=generator)
                errors = [chunking.chunking_error(model, tokens, c, sizes.keeps_past) for c in EXACT_CHUNKS]
                seen.add("chunking_error", max(errors), seed)
            if not sizes.prompt:
                continue
            model = chunking.Decoder(chunking.SMALL, generator)
            if lab.wants("chunk_overhead_cpu"):
                time_chunks(sizes, model, generator, seen, seed)
            if lab.wants("stall_cpu", "piggyback_gain_cpu"):
                time_hybrids(sizes, model, generator, seen, seed)
            if sizes.requests and lab.wants("live_tbt_ratio"):
                serve_live(sizes, model, lab, seen, seed)
        if sizes.pretrained_prompt and lab.wants("chunking_error_smollm2") and lab.data(SMOLLM2):
            prefill_smollm2(sizes, lab, seen)


def time_chunks(
    sizes: Sizes, model: chunking.Decoder, generator: torch.Generator, seen: Observations, seed: int
) -> None:
    """Seconds of a prompt's chunks over those of one shot, by chunk size."""
    tokens = torch.randint(model.config.vocab, (sizes.prompt,), generator=generator)
    others = OVERHEAD_CHUNKS if seed == 0 else ()  # for the figure, once
    chunks = [sizes.chunk, *(size for size in others if size < sizes.chunk)]
    for size, ratio in chunking.chunking_overheads(model, tokens, chunks).items():
        seen.add("chunk_overhead_cpu_by_chunk", ratio, seed, chunk=size)
        if size == sizes.chunk:
            seen.add("chunk_overhead_cpu", ratio, seed)


def time_hybrids(
    sizes: Sizes, model: chunking.Decoder, generator: torch.Generator, seen: Observations, seed: int
) -> None:
    """An iteration of decodes, beside a whole prompt and beside a chunk."""
    prompt, chunk = (min(sizes.longest_beside_decodes, tokens) for tokens in (sizes.prompt, CHUNK))
    took = chunking.hybrid_seconds(model, generator, DECODES, CONTEXT, prompt, chunk)
    seen.add("stall_cpu", took.with_prompt / took.decodes, seed)
    per_token = took.with_chunk / (chunk + DECODES)
    seen.add("piggyback_gain_cpu", took.decodes / DECODES / per_token, seed)


def serve_live(sizes: Sizes, model: chunking.Decoder, lab: Runtime, seen: Observations, seed: int) -> None:
    """P99 TBT of the same requests under vLLM's policy and ours, and whether all answers are the same."""
    rate = mini_engine.LOAD / mini_engine.service_seconds(model)
    rng = lab.rng(seed, "live")
    requests = mini_engine.draw_requests(rng, sizes.requests, model.config.vocab, rate)
    tbt, throughput, answers = {}, {}, {}
    for policy in dict.fromkeys((sizes.system, "vllm")):
        run_ = mini_engine.run_policy(model, requests, policy)
        tbt[policy], throughput[policy] = mini_engine.tail(run_)
        answers[policy] = run_.tokens
        seen.add("live_tbt", tbt[policy], seed, system=policy)
    seen.add("live_tbt_ratio", tbt["vllm"] / tbt[sizes.system], seed)
    seen.add("live_throughput_ratio", throughput[sizes.system] / throughput["vllm"], seed)
    same = sum(a == b for a, b in zip(answers["vllm"], answers[sizes.system], strict=True))
    seen.add("live_same_answers", same / sizes.requests, seed)


def prefill_smollm2(sizes: Sizes, lab: Runtime, seen: Observations) -> None:
    """Chunks of a third and of a seventh of a prompt of random tokens, against one shot."""
    from common.models.smollm2 import load_smollm2

    model = load_smollm2(sizes.pretrained_prompt)
    draw = lab.rng(0, "smollm2").integers(model.config.vocab, size=sizes.pretrained_prompt)
    tokens = torch.from_numpy(draw)
    chunks = (sizes.pretrained_prompt // 3, sizes.pretrained_prompt // 7)
    errors = [chunking.chunking_error(model, tokens, chunk, sizes.keeps_past) for chunk in chunks]
    seen.add("chunking_error_smollm2", max(errors))
