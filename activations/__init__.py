"""Text -> tokens -> activations on disk."""
