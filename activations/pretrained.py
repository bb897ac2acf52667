"""A pretrained model of transformers: its weights and tokenizer, or its modules without weights."""

from pathlib import Path
from typing import Any, cast

import torch

from activations import demo_assets, hub, precision
from activations.errors import ModelError


def fetch(
    name: str, revision: str | None, dtype: torch.dtype | str, device: torch.device, **placement: Any
) -> tuple[Any, Any]:
    """Return a transformers model and its tokenizer, as `load` finds them; `placement` says where the weights go.

    Without a placement they stay on the CPU; `device` is where the model is to run, for the choice of `auto`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = _source(name)
    # Code that comes with a model is never run, and the library must not ask for permission either
    safely: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    silence = None
    try:
        with hub.cache_alone_if_silent(source) as silence:
            config = AutoConfig.from_pretrained(source, **safely)
            _require_decoder(config, name)
            chosen = precision.resolve(dtype, config, device)
            settings = {**safely, **placement, "dtype": chosen, "output_loading_info": True}
            hf_model, report = cast(Any, AutoModelForCausalLM.from_pretrained(source, **settings))
            tokenizer = AutoTokenizer.from_pretrained(source, **safely)
    except ModelError:
        raise
    except Exception as error:  # the libraries below raise every kind of error, plain Exception included
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
        reason = f"{silence}, and the hub's cache on this machine does not hold it." if silence else reason
        raise ModelError(
            f"cannot load the model {name!r}: {reason} Expected 'embedded', a model folder, or a hub name "
            f"(fetched over the network, so check the spelling and the connection)"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the model {name!r} lacks {len(missing):,} of its weights, {missing[0]} among them, which would be random"
        )
    return hf_model, tokenizer


def skeleton(name: str, revision: str | None = None) -> Any:
    """Return the modules of a model without any weights. Raises ModelError when its configuration cannot be loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        source = _source(name)
        with hub.cache_alone_if_silent(source), torch.device("meta"):
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot read the configuration of the model {name!r}: {error}") from error


def _source(name: str) -> str:
    """Return what transformers loads for a name. Raises ModelError for a folder that is not there."""
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"no model folder at {name}: expected a folder with config.json, or a hub name")
    return str(demo_assets.model_folder()) if name == "embedded" else name


def _require_decoder(config: Any, name: str) -> None:
    """Raise ModelError unless transformers has a decoder-only language model for this configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = f"{name} is of type {config.model_type!r}"
    expected = "expected a causal (decoder-only) language model, such as gpt2"
    if config.is_encoder_decoder:
        raise ModelError(f"{kind}, an encoder-decoder: {expected}")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{kind}, for which transformers has no causal language model: {expected}")
