"""Sparse autoencoders: train, measure, read. The public names are in __init__.pyi; each is fetched when first used."""

import lazy_loader

from activations.errors import WorkbenchError as WorkbenchError

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["WorkbenchError"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used; `__version__` is the version that is installed."""
    if name == "__version__":
        from importlib.metadata import version

        return version("sae-workbench")
    return _attribute(name)
