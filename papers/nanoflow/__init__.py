"""NanoFlow: Towards Optimal Large Language Model Serving Throughput

The idea in ten lines: the problem, what others do about it, what this paper does instead, and why that works.
One module a mechanism, named after it; experiment.py says what is measured.
"""
