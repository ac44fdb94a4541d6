"""DeepSpeed-FastGen (Holmes, Tanaka et al., 2024): give every forward pass the same number of tokens.

A forward pass takes as long as its tokens make it take, whichever sequences they belong to, and the tokens a second
rise with the tokens of a pass and then stop rising. Systems that run a prompt whole (vLLM alone, Orca beside
generation) make passes of one token and passes of thousands. Dynamic SplitFuse (splitfuse.py) splits long prompts over
passes and fuses short ones, so that every pass is filled to the budget where the curve bends (token_curve.py).

closed_loop.py draws the paper's load and serves it in simulation; agreement.py counts the requests that were served as
agreed; load_sweep.py compares schedules over the number of clients; replicas.py puts several engines behind a load
balancer; real_runs.py times passes and runs the policies for real on a CPU.
"""
