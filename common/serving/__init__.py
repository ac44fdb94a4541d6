"""LLM serving as discrete-event simulation, exact and coalesced.

A `Workload` arrives at a system of `Instance`s. Each instance asks its scheduler what the next
iteration computes, its latency model how long that takes, and its memory what still fits; `simulate`
returns the time stamps of every request. Between two changes of a batch the decode iterations are
one closed-form stretch, so that cost grows with requests and not with tokens (engine.py).
"""
