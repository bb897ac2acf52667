"""Sparse autoencoders: train, measure, read. The public names are in __init__.pyi; each is fetched when first used."""

import lazy_loader

from activations.errors import WorkbenchError as WorkbenchError

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["WorkbenchError"]
