"""The Dead latents page."""
