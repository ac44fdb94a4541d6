"""Devices and links with their sources, operator times (measured tables or roofline), and the profiler.

`OperatorTables.load(directory)` and `RooflineOperators(gpu)` answer the same questions (operators.py); a model
of a whole LLM iteration is put together from them in common/serving. Measured tables of an H100 are in tables/.
"""
