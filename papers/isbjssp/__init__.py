"""Dispatching rules learned by a graph network for job shops without buffers whose machines shut down at random.

A job that is done on a machine holds it until its next machine takes the job (blocking). Jobs that hold each other's
next machines change places at one instant (swap); without that they would wait for ever. Machines shut down at random
(interrupting), so that a schedule computed ahead is soon worth nothing: factories dispatch, that is, an idle machine
takes the waiting job that a rule prefers. The paper learns the rule. The state is a disjunctive graph that changes as
operations end, hold machines and are taken (disjunctive_graph.py); a graph network embeds its operations and scores the
candidates of the idle machine (graph_policy.py); PPO trains it on random instances (training.py). It is then used on
classical instances of other sizes and at any probability of shutdown, against 15 rules (evaluation.py), and its
decisions are timed against solving the rest of the schedule anew (decision_time.py).
"""
