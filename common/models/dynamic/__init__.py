"""Networks whose path depends on the input: nine kinds, small, seeded, written as ordinary modules.

`zoo.build(name, generator, inputs)` makes one and calibrates its thresholds on inputs. Each forward takes a batch of
one and is plain Python: loops, `if` on tensors, early returns, counters, modules chosen by an index.
"""
