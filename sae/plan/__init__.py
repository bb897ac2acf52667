"""Predict the time, memory and disk that a harvest, a training or `sae features` takes, without running it."""
