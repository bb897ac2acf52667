"""Read Qwen-Scope's TopK SAEs on the residual stream of Qwen models, one layerN.sae.pt per block.

Deng et al. 2026, arXiv:2605.11887; the code on the models' cards. b_dec is not subtracted from the input. A file holds no
settings: layer, model, width and k are in its own name and in the repository's, as in
Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer20.sae.pt."""

import re
from pathlib import Path

from activations.errors import ConfigError, ForeignError
from sae.architectures import TopKConfig
from sae.foreign.exact_forms import assemble, finished, fold_norms, fold_pre_bias
from sae.foreign.weights import Imported, Layout, Origin, Weights, read_pt, state_dict

TITLE = "Qwen-Scope (layerN.sae.pt in a folder named after the repository)"
FILE = re.compile(r"layer(\d+)\.sae\.pt")
REPOSITORY = re.compile(r"SAE-Res-([\w.-]+?)-W(\d+)K-L0_(\d+)(?![\d.])")
LAYOUTS = (Layout(FILE.pattern, names_file=True),)


def recognises(path: Path) -> bool:
    """Return whether this is a layerN.sae.pt, or a folder with exactly one."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    """Return the file itself, or the only one in a folder; None when there is none or more than one."""
    if path.is_dir():
        files = [file for file in path.iterdir() if FILE.fullmatch(file.name) and file.is_file()]
        return files[0] if len(files) == 1 else None
    return path if FILE.fullmatch(path.name) and path.is_file() else None


def read(path: Path) -> Imported:
    """Read the SAE of one block. Raises ForeignError when it is damaged or its path does not give its k."""
    file = _file(path)
    if file is None:
        raise ForeignError(
            f"{path} is neither a layerN.sae.pt nor a folder with exactly one: name the file of one block"
        )
    layer = FILE.fullmatch(file.name)
    repositories = REPOSITORY.findall("/".join(file.absolute().parts))
    if layer is None or not repositories:
        raise ForeignError(
            f"the path of {file} does not give its k: keep it in a folder with the repository's name, as in "
            f"SAE-Res-Qwen3-8B-Base-W64K-L0_50/{file.name}"
        )
    model, width, k = repositories[-1]
    content = state_dict(read_pt(file), file)
    weights = Weights(file, content)
    encoder = weights.take("W_enc", None, None)
    n, d = encoder.shape
    tensors = {
        "W_enc": encoder.T,
        "b_enc": weights.take("b_enc", n),
        "W_dec": weights.take("W_dec", d, n).T,
        "b_dec": weights.take("b_dec", d),
    }
    weights.done()
    try:
        sae = assemble(TopKConfig(d_sae=n, k=int(k)), tensors)
    except ConfigError as error:
        raise ForeignError(f"{file}: {error}") from error
    notes = fold_pre_bias(sae, subtracted=False) + fold_norms(sae)
    notes.append(f"the model card's code keeps the {k} largest pre-activations even where they are negative; here a row "
                 f"with fewer than {k} positive ones keeps only those")  # fmt: skip
    if n != int(width) * 1024:
        notes.append(f"the repository's name gives {width}K latents, the file has {n:,}")
    origin = Origin(f"Qwen/{model}", f"blocks.{layer[1]}.hook_resid_post", {"average_l0": int(k)})
    return Imported(finished(sae), origin, notes)
