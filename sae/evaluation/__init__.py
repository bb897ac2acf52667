"""How good an SAE is, over a store and inside its language model."""
