"""FastSwitch: fast context switching for serving whose priorities change while requests run.

A fair server re-ranks its users all the time. Who falls behind is swapped out, KV cache and all, and later back in.
With paged KV that is one copy call for each block of 16 tokens, each layer, and K or V: issuing the calls costs more
than the wire, the GPU waits meanwhile, and a conversation's old tokens are copied out again every time. FastSwitch
allocates runs of blocks (a call moves a run), copies beside computing, and keeps what the host already has.

block_groups.py        which physical blocks a request holds: runs (FastSwitch) or single blocks (vLLM)
async_swaps.py         copies as events: what is in flight, and who waits for what
kv_reuse.py            host copies: what is valid, what must be copied, who is evicted
priorities.py          the two patterns of changing priorities
server.py              the mechanism in the serving engine; priority_switching.py: who runs
ledger.py              what a run counts
conversations.py       multi-turn workloads
deployments.py         the paper's models and GPUs; the ladder of systems on one
allocator_history.py   requests that come, grow and leave, for both allocators
live_server.py         the same server on a real model: iterations computed, blocks copied by a thread
live_study.py          whether its answers change, and whether it decodes while blocks move
evaluation.py          one run of one system
config.py              Config: sizes and switches
experiment.py          run(): everything the claims in paper.yaml read
"""
