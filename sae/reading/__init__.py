"""A text read through an SAE: which features fire on which token, and what they write."""
