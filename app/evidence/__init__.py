"""The Evidence page: a run beside its controls and seeds."""
