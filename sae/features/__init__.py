"""Collect what each latent fires on and what it writes, and read the features folder that holds it."""
