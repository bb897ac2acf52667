"""Train an SAE: trainer, optimizer, schedule, checkpoints, logs, and sharing among ranks."""
