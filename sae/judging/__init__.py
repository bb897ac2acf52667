"""Let a language model at an address explain latents, and tell how well its explanations say where they fire."""
