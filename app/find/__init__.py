"""The Find page: two sets of texts, and the latents that tell them apart."""
