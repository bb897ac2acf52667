"""Run folders: settings, log, checkpoints, the finished SAE and its evaluation."""
