"""Intervals over seeds, paired comparisons, and distributions kept as quantiles.

`quantiles` needs numpy alone, so that experiments may import it; `intervals` and `paired` bring SciPy. Nothing is
imported here for that reason.
"""
