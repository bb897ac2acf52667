"""Explain latents by rules on their tokens, and score the rules on text that did not choose them."""
