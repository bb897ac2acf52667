"""Why latents are dead, rare or dense, and what would change it."""
