"""Text -> tokens -> activations on disk. The public names are in __init__.pyi; each is fetched when first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
