"""GEMM time, power and energy of a configuration before it runs: a tile sweep, and a random forest over profiled runs.

A textbook tiled SGEMM (tiled_kernel.py) is timed by tile (tile_sweep.py); why 16x16 wins on Ada and need not on Hopper
follows from lanes, shared-memory passes and resident blocks (tile_model.py, common/hardware/occupancy.py). A forest
(forest.py) predicts time, power, energy and rate of 16,128 CUTLASS runs (cutlass_grid.py). The lesson beyond the paper:
a random split of rows leaks, because 36 sizes are repeated 448 times each (evaluation.py), and power read after the
kernel has ended says which rows were read while the board was idle (idle_power.py). gpu_sweep.py measures the same
kernel, with power during its execution, on a GPU of the user's own.
"""
