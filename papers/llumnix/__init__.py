"""Llumnix: Dynamic Scheduling for Large Language Model Serving (OSDI 2024), arXiv:2406.03243

A request's memory grows for as long as it talks, and nobody knows for how long. Whatever instance a dispatcher chooses,
some instances run out of KV memory and preempt while others have plenty, free memory is scattered, and important
requests share their instance with everybody. Llumnix reschedules at run time, as an operating system moves processes
between cores: a running request's KV cache is copied to another instance while it goes on decoding, so that it stops
for the last blocks only. Load balancing, defragmentation, priorities and draining then become one rule, a virtual
usage of memory, that a global scheduler compares across instances.

    freeness.py           virtual usage and freeness: queued demand, headroom of priorities, draining
    global_scheduler.py   dispatch to the freest, pairs for migration; auto_scaling.py: how many instances
    local_scheduler.py    the batch policy of an instance, with priorities and the cost of preemptions
    migration.py          live migration between simulated instances: stages, pre-allocation, commit and abort
    cluster.py            sixteen instances under each policy; samples.py: what of their memory is held or scattered
    llama_on_a10.py       how long their iterations take
    lengths.py            the authors' length distributions
    serving_study.py, priority_study.py, scaling_study.py    what the simulated claims read
    live_instance.py      a live engine's instance whose requests can leave and arrive
    real_migration.py     live migration for real: source and target; two_instances.py: trials in two processes
    migration_study.py    what a client feels of it
"""
