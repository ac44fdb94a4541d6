"""Devices and links with their sources, and operator times (measured tables or roofline).

`OperatorTables.load(directory)` and `RooflineOperators(gpu)` answer the same questions (operators.py); a model
of a whole LLM iteration is put together from them in common/serving. Measured tables of an H100 are in tables/;
common/serving/profile_gpu.py writes those of a user's own GPU.
"""
