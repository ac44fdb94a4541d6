"""DataStates-LLM: weights and optimiser state change in the update alone, so copies may run through all the rest.

A checkpoint is enqueued right after the update and training goes on. Its tensors are copied from the device into one
ring of host memory during the next forward and backward pass, and each is written to its file as soon as it is there.
Only the next update waits, and only for copies that are not finished. A version counts once the files of all ranks are
whole (two-phase commit).

pool.py is the ring, file_format.py the file, tiers.py the two flush threads, engine.py the engine, baselines.py what
it is compared with, commit.py the agreement between ranks. training.py and timed.py time them on real training steps
behind throttled devices, torn.py and crash.py try to break what they write, cluster.py puts them on the paper's
machine (polaris.py, at_scale.py).
"""
