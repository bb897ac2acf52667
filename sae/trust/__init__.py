"""Evidence for a run: its controls, and what its measures say beside theirs. Functions of SAEs and numbers; workflows/trust.py does the work on disk."""
