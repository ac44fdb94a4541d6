"""DistServe: prefill and decode on different GPUs, each phase with its own parallelism.

Prefill is compute-bound and long, decode memory-bound and short. In one batch they delay each other, and they
must share one plan of parallelism. DistServe gives each phase its own instances, moves the KV cache once per
request, and places the instances so that *goodput per GPU* is highest: the request rate at which 90% of requests
meet both their TTFT and their TPOT objective, over the GPUs of both phases.

disaggregation.py   the two phases at run time, and the pull of KV caches between them
deployment.py       parallelism, placements, and the systems built from them (the colocated one as well)
placement.py        the two placement algorithms, for fast and for slow networks between nodes
scenarios.py        the paper's workloads and objectives
evaluation.py       every system of a scenario on one seed's requests
two_process.py      prefill and decode in two real processes
simulator_check.py  whether the simulator predicts them
config.py           what a run may be; cases.py what it compares; experiment.py all that the claims read
exercises.py        the notebook's exercises, solved
"""
