"""What the claims of vAttention read: real mappings and kernels on this CPU, counts and clocks at the paper's scale."""

from common.lab.runtime import Observations, Runtime
from papers.vattention.config import Config
from papers.vattention.driver_calls import gathering_ratio
from papers.vattention.fragmentation import compare_pages, gain_of
from papers.vattention.long_prompts import long_traces
from papers.vattention.overlap import overlap_at_scale, prefills_at_scale

GATHERED = (
    (1, 4096),
    (1, 16384),
    (1, 65536),
    (512, 65536),
    (2048, 65536),
)  # new queries, context: of the H100's rows
DECODE = (1, 65536)


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    seen = Observations()
    if config.simulate:
        if lab.wants("highest_spike_ms"):
            overlap_at_scale(config, lab, seen)
        if lab.wants("prefill_gain_64kb"):
            prefills_at_scale(config, seen)
        if lab.wants(*map(gain_of, config.models)):
            compare_pages(config, lab, seen)
        if lab.wants("offline_gain", "online_cut"):
            long_traces(config, lab, seen)
        if lab.wants("gather_ratio_h100"):
            for new, context in GATHERED:
                ratio = gathering_ratio(new, context, config.block_tokens)
                seen.add("gather_ratio_by_shape", ratio, new=new, context=context)
                if (new, context) == DECODE:
                    seen.add("gather_ratio_h100", ratio)
    if config.layers:
        from papers.vattention import measurements  # brings torch, which the simulations do without

        measurements.run(config, lab, seen)
    if lab.device.startswith("cuda") and lab.wants("gpu_decode_gain", "gpu_prefill_gain"):
        on_gpu(config, lab, seen)
    return seen


def on_gpu(config: Config, lab: Runtime, seen: Observations) -> None:
    """Paged over contiguous FlashAttention-2 at the shapes of Llama-3-8B on one of two workers."""
    import torch

    from papers.vattention.gpu_kernels import BLOCK_TOKENS, paged_over_contiguous

    seen.add("gpu_is_a100", float("A100" in torch.cuda.get_device_name()))
    for seed in lab.seeds:
        for metric, batch, new, context in (
            ("gpu_decode_gain", 16, 1, 16384),
            ("gpu_prefill_gain", 1, 32768, 32768),
        ):
            block = BLOCK_TOKENS if config.block_tokens else context
            seen.add(metric, paged_over_contiguous(batch, new, context, 16, 4, 128, block), seed)
