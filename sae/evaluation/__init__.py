"""Measure how good an SAE is: on a store, inside its language model, on planted features, and against another SAE."""
