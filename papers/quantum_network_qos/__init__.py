"""Quality of service in multi-user quantum networks: entanglement by a central, cyclic schedule (TDMA).

Users ask for entangled pairs of a fidelity and a rate. The fastest repeater protocol for a demand is searched for
(esss.py: links, swaps and distillations, protocols.py, on Werner states, werner.py), mapped to single qubits and slots
with locks on what stores half of a pair (mapping.py), and becomes a periodic task (demands.py). Tasks are admitted one
by one into a schedule of the hyperperiod (common/scheduling/periodic.py: the network as one processor, protocols as
blocks on all their qubits, or by the intervals in which they really hold each qubit) and verified on their own
(common/scheduling/periodic_check.py). replay.py plays a schedule with links that may fail.
"""
