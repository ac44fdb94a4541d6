"""Accelerators for neural networks: layers, their mapping on an array of processing elements, cycles and energy."""
