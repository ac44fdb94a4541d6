"""Universal Checkpointing: save as ranks hold it, convert when the layout changes, load into any layout.

A distributed checkpoint is cheap to write and tied to the layout that wrote it. Here every rank writes what its
optimiser owns (native.py). Only when training goes on under another layout are the files converted, into one folder a
parameter that knows nothing of ranks, shards or padding (atomic.py), and each rank of the new layout takes from them
what it needs (loading.py). What a parameter is to the ranks is said by patterns over names, which the checkpoint states
itself (patterns.py; for our decoder decoder.py); a slice of a whole tensor is computed from them (slices.py).
Extract, Union and StripPad: union.py. Many processes on many nodes: conversion.py; their minutes at 7B to 1T:
minutes.py; seconds of real processes: throttled.py. Does training go on: reconfiguration.py; other decoders, and DCP
beside ours: scenarios.py.
"""
