"""Latents turned up, down, off or around while the model writes, and what that does to the text."""
