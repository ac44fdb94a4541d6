"""Real multi-process runs of torch.distributed (gloo) on one machine."""
