"""Steering: change chosen latents while the language model writes, and measure what that does to the text."""
