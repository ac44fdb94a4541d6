"""Scheduling: job shops, graphs of tasks and periodic tasks, rules and optima, and verifiers that know no scheduler."""
