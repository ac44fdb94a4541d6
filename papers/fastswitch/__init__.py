"""FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language Model Serving

The idea in ten lines: the problem, what others do about it, what this paper does instead, and why that works.
One module a mechanism, named after it; experiment.py says what is measured.
"""
