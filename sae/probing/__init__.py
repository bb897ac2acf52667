"""Probing: what an SAE's latents know of labelled texts, beside baselines; latents found from examples; monitors."""
