"""REFT: the latest training state is kept in the host memory of the nodes that train (arXiv 2310.12670).

Checkpoints on disk are slow, so they are rare, and a failure costs what was trained since. Here data-parallel peers,
which hold the same state, copy an m-th of it each into memory that a snapshot management process of their node owns; it
survives its trainers. The m processes of a sharding group keep rotated XOR parity of one another's shards, so that the
group survives the loss of any one node too.

replicas.py             trainers that hold the same state, and it as one stretch of bytes with a header
parity.py               which block is covered by which parity; encoding and rebuilding with XOR
buffers.py              two halves for each shard, clean and dirty; checksums of every block
snapshot_process.py     the process that owns the memory, encodes with its peers, rebuilds and persists
snapshot.py             the trainer's side: buckets between steps, what the next update waits for, the flag
recovery.py             one version that every group has, from memory, parity or disk
fault_matrix.py         who dies when, and what must come back
training_job.py         trainers and snapshot processes together; kills and restarts
engines.py              torch.save, CheckFreq, TorchSnapshot, and this one, on devices of stated rates
waiting.py              what updates and snapshots wait for
survival.py             how long the state survives: closed forms by node sets, and simulated histories
saving_cost.py          seconds of a save on any devices; Young and Daly's interval; what a failure costs
"""
