"""The model: config, schedule, entropy path (numpy or torch, no torch import), transforms and module (torch)."""
