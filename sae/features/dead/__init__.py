"""Why latents do not fire, what would make them, and what those that fire on nearly everything are."""
