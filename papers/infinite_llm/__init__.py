"""Infinite-LLM: Efficient LLM Service for Long Context with DistAttention and Distributed KVCache, arXiv:2401.02669

A request's keys and values grow with its context while the rest of the model does not. Parallelism sized for the
longest request splits everything too finely; instances sized for short ones cannot hold it, and waste memory
otherwise. Here a sequence is cut into parts that lie, and are attended to, on several instances: the query goes out, a
small partial result comes back, the merge is exact. So instances lend KV memory to one another, under a ledger that may
be out of date.

    dist_attention.py    partial attention and its merge
    processes.py         the same between real processes, against ring attention and fetching, bytes counted;
                         and real borrowers that ask one creditor at once
    remote_cache.py      a decoder with most of its KV cache in other processes
    ledger.py            who lends to whom: rManager, gManager, cycles of debt
    planning.py          which loans pay, and what they cost both sides
    lending.py           simulated instances that borrow and lend, round after round
    comparison.py        which runs a metric needs, and what it makes of them
    cluster.py           32 A100s, with loans, without, and as one instance
    decode_step.py       one decode step in closed form
    traces.py            requests with a heavy tail of contexts
"""
