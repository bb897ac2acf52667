"""Read and write OpenAI's sparse_autoencoder: one .pt with a state dict and the name of its activation function.

https://github.com/openai/sparse_autoencoder, commit 4965b94, model.py. Its TopK SAEs normalise each row (mean 0, standard
deviation 1) and undo that after decoding, so decoding needs x too, which a `SparseCode` does not carry. Its README loads
GPT-2 with center_writing_weights=False, and TransformerLens' other processing does not change the hook points it reads."""

import re
from pathlib import Path

import torch

from activations.disk import files
from activations.errors import ForeignError
from sae.architectures import SAE, ReLU, ReLUConfig
from sae.foreign.exact_forms import assemble, finished, fold_norms, fold_pre_bias, form_of, refusal
from sae.foreign.weights import Imported, Layout, Origin, Weights, read_pt, state_dict

TITLE = "OpenAI sparse_autoencoder (one .pt)"
WEIGHTS = "autoencoder.pt"
LAYOUTS = (
    Layout(re.escape(WEIGHTS)),
    Layout(r"(?!ae\w*\.pt$|layer\d+\.sae\.pt$|autoencoder\.pt$).+\.pth?", names_file=True),
)
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
REFUSED = {
    "TopK": "it normalises each row and needs the row's mean and standard deviation again to decode, which an SAE here "
    "does not have: train one on the same activations",
    "Identity": "all its latents fire on every row, so it is a linear map and not a sparse autoencoder",
}


def recognises(path: Path) -> bool:
    """Return whether this is a .pt or .pth with `pre_bias` and `latent_bias` in it, or a folder with autoencoder.pt."""
    file = path / WEIGHTS if path.is_dir() else path
    if file.suffix not in (".pt", ".pth") or not file.is_file():
        return False
    try:
        content = read_pt(file)
    except ForeignError:
        return False
    return isinstance(content, dict) and {"pre_bias", "latent_bias"} <= content.keys()


def read(path: Path) -> Imported:
    """Read the SAE of a file. Raises ForeignError when it is damaged or its activation function is not ReLU."""
    file = path / WEIGHTS if path.is_dir() else path
    content = state_dict(read_pt(file), file)
    activation = content.get("activation", "ReLU")
    if not isinstance(activation, str) or activation != "ReLU":
        name = repr(activation) if isinstance(activation, str) else f"a {type(activation).__name__}"
        reason = (
            REFUSED.get(activation, "it is not known here")
            if isinstance(activation, str)
            else "that is not a name"
        )
        raise ForeignError(f"{file} has the activation {name}: {reason}; expected ReLU")
    weights = Weights(file, content)
    weights.drop("activation", "activation_state_dict", *STATISTICS)
    encoder = weights.take("encoder.weight", None, None)
    n, d = encoder.shape
    tied = "decoder.linear.weight" in weights  # the encoder's own matrix, under another name
    decoder = weights.take("decoder.linear.weight", n, d) if tied else weights.take("decoder.weight", d, n).T
    tensors = {
        "W_enc": encoder.T,
        "b_enc": weights.take("latent_bias", n),
        "W_dec": decoder,
        "b_dec": weights.take("pre_bias", d),
    }
    weights.done()
    sae = assemble(ReLUConfig(d_sae=n), tensors)
    notes = fold_pre_bias(sae, subtracted=True) + fold_norms(sae)
    return Imported(finished(sae), Origin(None, None, {"activation": activation}), notes)


@torch.no_grad()
def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """Write a folder with autoencoder.pt, for `Autoencoder.from_state_dict(torch.load(file))`.

    Raises ForeignError for every architecture except ReLU. The format cannot hold `origin`."""
    form = form_of(sae, ReLU)
    if form is None:
        raise refusal(sae, "OpenAI's code", "ReLU SAEs, and TopK SAEs that normalise each row")
    b_dec, W_enc = form.b_dec.double(), form.W_enc.double()
    content = {
        "pre_bias": form.b_dec.float().clone(),
        "latent_bias": (form.b_enc.double() + b_dec @ W_enc).float(),
        "encoder.weight": form.W_enc.T.float().contiguous().clone(),
        "decoder.weight": form.W_dec.T.float().contiguous().clone(),
        "stats_last_nonzero": torch.zeros(sae.d_sae, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(sae.d_sae),
        "latents_mean_square": torch.zeros(sae.d_sae),
        "activation": "ReLU",
        "activation_state_dict": {},
    }
    with files.new_folder(path) as folder:
        files.write_atomically(folder / WEIGHTS, lambda part: torch.save(content, part))
    return []
