"""A package outside the tree that adds an architecture and a file format: installed by a folder on the path."""

import shutil
from pathlib import Path

ENTRY_POINTS = """[sae.architectures]
plaink = plaink:PlainK

[sae.formats]
plain_files = plainfiles
"""


def install(folder: Path, entry_points: str = ENTRY_POINTS, name: str = "sae-plain") -> Path:
    """Lay the package's modules and its metadata into a folder, as pip would into site-packages. Return the folder."""
    for module in Path(__file__).parent.glob("plain*.py"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, folder)
    about = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(entry_points)
    return folder
