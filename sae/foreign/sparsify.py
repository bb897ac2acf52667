"""Read and write sparsify's SAEs: cfg.json and sae.safetensors in a folder named after the module that the SAE reads.

This follows the loader of sparsify 1.3.3 (https://github.com/EleutherAI/sparsify). The width comes from the tensors, since cfg.json
may leave it at 0. W_dec has one row per latent. b_dec is subtracted from x whatever `normalize_decoder` says."""

import re
from pathlib import Path

from activations.disk import files
from activations.errors import ForeignError
from sae.architectures import SAE, AbsTopKConfig, TopK, TopKConfig
from sae.foreign.exact_forms import assemble, finished, fold_norms, form_of, notes_on, refusal
from sae.foreign.weights import (
    Imported,
    Layout,
    Origin,
    Settings,
    Weights,
    hook_of_module,
    read_json,
    read_safetensors,
    setting,
    text_or_none,
)

TITLE = "sparsify (cfg.json and sae.safetensors)"
WEIGHTS, CFG, RUN = "sae.safetensors", "cfg.json", "config.json"
LAYOUTS = (Layout(re.escape(WEIGHTS), (CFG,), (f"../{RUN}", f"../../{RUN}")),)
REFUSED = {
    "transcode": "a transcoder, which reconstructs a module's output from its input",
    "skip_connection": "with a linear skip connection, which adds x W_skip",
}
"""Settings of dictionaries which no architecture of this package can represent exactly -> what such a dictionary is."""
# Weight of the Multi-TopK loss (reconstruction with 4k latents), fixed in sparsify's trainer
MULTI_WEIGHT = 1 / 8


def recognises(path: Path) -> bool:
    """Return whether this is a folder whose cfg.json gives an expansion factor or a number of latents."""
    if not ((path / CFG).is_file() and (path / WEIGHTS).is_file()):
        return False
    try:
        settings = read_json(path / CFG)
    except ForeignError:
        return False
    return "expansion_factor" in settings or "num_latents" in settings


def read(path: Path) -> Imported:
    """Read the SAE of one hook point. Raises ForeignError when it is damaged or no architecture here represents it exactly."""
    settings_file = path / CFG
    settings = read_json(settings_file)
    for name, what in REFUSED.items():
        if settings.get(name):
            raise ForeignError(
                f"{path} is {what} ({name} in {CFG}): an SAE here reconstructs what it reads, from features alone"
            )
    activation = settings.get("activation", "topk")  # older files do not name it
    if activation != "topk":
        raise ForeignError(
            f"{path} has activation {activation!r}: one latent of each of k groups fires, a rule that no architecture here "
            f"has; expected topk"
        )
    weights = Weights(path / WEIGHTS, read_safetensors(path / WEIGHTS))
    encoder = weights.take("encoder.weight", None, setting(settings, "d_in", int, settings_file))
    n, d = encoder.shape
    tensors = {
        "W_enc": encoder.T,
        "b_enc": weights.take("encoder.bias", n),
        "W_dec": weights.take("W_dec", n, d),
        "b_dec": weights.take("b_dec", d),
    }
    weights.done()
    k = setting(settings, "k", int, settings_file)
    if not 0 < k <= n:
        raise ForeignError(f"{settings_file}: k = {k} must lie between 1 and the {n} latents of {WEIGHTS}")
    # An option of old releases: latents are ranked by absolute value and keep their sign
    signed = bool(settings.get("signed"))
    multi = MULTI_WEIGHT if settings.get("multi_topk") else 0.0  # matters in training only
    cfg = AbsTopKConfig(d_sae=n, k=k) if signed else TopKConfig(d_sae=n, k=k, multi_weight=multi)
    sae = assemble(cfg, tensors)
    notes = ["its latents are signed: read as AbsTopK"] if signed else []
    return Imported(finished(sae), _origin(path, settings), notes + fold_norms(sae))


def _origin(path: Path, settings: Settings) -> Origin:
    """Return the origin, from the folder's name and the run's config.json above it.

    The folder is named after the module that the SAE reads, or is one seed's folder within such a folder."""
    folder = path.absolute()
    module = folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder
    run = read_json(module.parent / RUN) if (module.parent / RUN).is_file() else {}
    facts = {
        "hookpoint": module.name,
        "cfg": dict(settings),
        "context_size": run.get("ctx_len"),
        "dataset_path": run.get("dataset"),
    }
    return Origin(text_or_none(run, "model"), hook_of_module(module.name), facts)


def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """Write a folder that `SparseCoder.load_from_disk` reads; name it after the module, as in layers.8.

    Raises ForeignError for an architecture that does not keep k latents of each row."""
    form = form_of(sae, TopK, split_signs=True)
    if form is None:
        raise refusal(sae, "sparsify", "TopK SAEs")
    n, d = form.W_dec.shape
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, n // d),
        "normalize_decoder": True,
        "num_latents": n,
        "k": form.cfg.k,
        "multi_topk": form.cfg.multi_weight > 0,
        "skip_connection": False,
        "transcode": False,
        "d_in": d,
    }
    tensors = {
        "encoder.weight": form.W_enc.T,
        "encoder.bias": form.b_enc,
        "W_dec": form.W_dec,
        "b_dec": form.b_dec,
    }
    with files.new_folder(path) as folder:
        files.write_tensors(
            folder / WEIGHTS, {name: tensor.float() for name, tensor in tensors.items()}, "pt"
        )
        files.write_json(folder / CFG, settings)
    return notes_on(sae, n)
