"""Reinforcement learning: agents of libraries where one fits, a policy over graphs where none does, learning curves."""
