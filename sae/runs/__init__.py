"""What a run folder holds: settings, log, checkpoints, the finished SAE and its evaluation."""
