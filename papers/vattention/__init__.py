"""vAttention: a KV cache that stays contiguous in virtual memory while physical pages are mapped on demand.

PagedAttention allocates KV memory in blocks that lie anywhere, so that every attention kernel follows a block table.
vAttention reserves the virtual addresses of all requests up front (virtual_memory.py) and maps physical pages behind
them as requests grow (allocator.py), so that an unchanged kernel reads one contiguous slice (kv_cache.py). Mapping is
slow: it runs in a background thread during compute, and a finished request's pages stay for the next one (overlap.py).
What pages of 64 KB save over 2 MB: fragmentation.py. What paging costs: paged_attention.py, block_tables.py,
long_prompts.py. Correctness in a real engine: live_engine.py.
"""
