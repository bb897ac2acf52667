"""Activations made while a run trains on them: a bounded ring of shards, processes that fill it, and a reader that shuffles."""
