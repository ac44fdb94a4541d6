"""Single iterations: what a decode costs beside a chunk, what chunks cost a prompt, and an H100."""

from common.hardware.operators import H100, read_table
from common.lab.runtime import Observations, Runtime
from common.serving.latency import LatencyModel
from common.serving.profiled import profiled_latency
from papers.sarathi_serve.config import Config
from papers.sarathi_serve.deployments import DEPLOYMENTS
from papers.sarathi_serve.hybrid import Apart

PROMPTS = (2048, 4096, 8192, 16384)  # tokens
DECODES = 4  # alone, of the published comparison; beside the chunk one fewer


def observe(config: Config, lab: Runtime, seen: Observations) -> None:
    """What latency model and measured tables say of single iterations: deterministic, without a seed."""
    plain = DEPLOYMENTS["yi"].latency(config.host_seconds)
    yi = plain if config.fused else Apart(plain)
    if lab.wants("piggyback_gain"):
        alone = yi.iteration([], DECODES, DECODES * 1024)[0] / DECODES
        mixed = yi.iteration([(config.prompt, 0)], DECODES - 1, (DECODES - 1) * 1024)[0]
        beside = mixed / (config.prompt + DECODES - 1)
        added = (mixed - plain.iteration([(config.prompt, 0)], 0, 0)[0]) / (DECODES - 1)
        seen.add("piggyback_gain", alone / beside)
        seen.add("piggyback_decodes", DECODES)
        seen.add("decode_alone_ms", 1000 * alone)
        seen.add("decode_beside_ms", 1000 * beside)
        seen.add("decode_added_ms", 1000 * added)  # what a decode really adds to the iteration of the chunk
    if lab.wants("stall_h100"):
        chunk = h100_seconds("128/2176", 32, 1024) / h100_seconds("", 32, 1024)
        seen.add("chunk_h100", chunk)
        # of short prompts the shortest piece that was measured, 128 tokens
        whole = h100_seconds("1024/1024", 8, 512) / h100_seconds("", 8, 512)
        seen.add("stall_h100", whole if config.prompt > 128 else chunk)
    if lab.wants("chunk_overhead"):
        free = profiled_latency("yi-34b", tensor_parallel=2, host_seconds=0.0, rereads=False)
        for prompt in PROMPTS:
            seen.add("chunk_overhead_by_prompt", overhead(yi, prompt, config.chunk), prompt=prompt)
            seen.add("chunk_overhead_of_gemms", overhead(free, prompt, config.chunk), prompt=prompt)
        seen.add("overhead_longest_prompt", max(PROMPTS))
        seen.add("chunk_overhead", max(seen.values("chunk_overhead_by_prompt")))


def h100_seconds(prefill: str, decodes: int, context: int) -> float:
    """Measured seconds of four layers like Llama-2-7B's on an H100 (common/hardware/tables, layers_bf16.csv).

    prefill: prompt as "new tokens/all its tokens", or nothing; decodes: sequences of `context` tokens. Raises
    KeyError for a batch that was not measured.
    """
    for row in read_table(H100 / "layers_bf16.csv"):
        batch = (row["prefill"], int(row["decode_batch"]), int(row["decode_kv_len"]))
        if batch == (prefill, decodes, context):
            return float(row["seconds_graph"])
    raise KeyError(
        f"no measured H100 batch with prefill {prefill!r} and {decodes} decodes of {context} tokens"
    )


def overhead(latency: LatencyModel, prompt: int, chunk: int) -> float:
    """Seconds of a prompt's chunks, one an iteration, over those of the prompt in one. Both in tokens, 1 or more."""
    if prompt < 1 or chunk < 1:
        raise ValueError(f"a prompt of {prompt} tokens in chunks of {chunk}: both must be at least 1")
    parts = sum(
        latency.iteration([(min(chunk, prompt - start), start)], 0, 0)[0] for start in range(0, prompt, chunk)
    )
    return parts / latency.iteration([(prompt, 0)], 0, 0)[0]
