"""The geometry of a store: norms, massive activations, anisotropy, intrinsic dimension and linearity of its hook points."""
