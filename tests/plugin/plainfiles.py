"""A file format of a package's own: an SAE's tensors as torch saves them. What an author outside this tree writes."""

from pathlib import Path

import torch

from sae.architectures import SAE, TopK, TopKConfig
from sae.foreign import Imported, Layout, Origin

TITLE = "plain files (a folder with plain.pt)"
LAYOUTS = (Layout(r"plain\.pt"),)


def recognises(path: Path) -> bool:
    """Whether this is a folder with plain.pt."""
    return (path / "plain.pt").is_file()


def read(path: Path) -> Imported:
    """Read the SAE."""
    content = torch.load(path / "plain.pt", weights_only=True)
    cfg = TopKConfig(d_sae=len(content["W_dec"]), k=content.pop("k"))
    sae = TopK.from_tensors(cfg, content).float().eval()
    return Imported(sae, Origin(None, None), [])


def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """Write the folder."""
    path.mkdir()
    torch.save({**sae.state_dict(), "k": sae.cfg.expected_l0().value}, path / "plain.pt")
    return []
