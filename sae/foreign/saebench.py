"""Adapt an SAE to what SAEBench (0.6) and SAEDashboard (0.8) expect: dense latents, and SAELens' attributes and cfg.

Both take any object with these in place of one of SAELens: `core.run_eval(config, [("mine", adapt(sae, origin))], …)`,
`SaeVisRunner(config).run(encoder=adapt(sae, origin), …)`. Only torch is needed."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from activations.errors import ForeignError
from sae.architectures import SAE, name_of
from sae.foreign.weights import Origin, layer_of


@dataclass
class BenchConfig:
    """Settings that SAEBench reads and adds to; most of them have the value that asks for nothing."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    dtype: str
    device: str
    context_size: int | None = None
    prepend_bos: bool = True
    dataset_path: str = ""
    apply_b_dec_to_input: bool = True
    hook_head_index: int | None = None
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = "relu"
    activation_fn_kwargs: dict[str, object] = field(default_factory=dict)
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, object] = field(default_factory=dict)
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = 0
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the fields as a dictionary."""
        return asdict(self)


class Bench(nn.Module):
    """An SAE of ours behind SAELens' interface: `encode` and `decode` are dense, [..., D] to [..., F] and back.

    Computations are float32 whatever `dtype` is; `dtype` is the type of the results and of the weights it shows."""

    def __init__(self, sae: SAE, cfg: BenchConfig):
        super().__init__()
        self.sae, self.cfg = sae, cfg
        self.dtype = torch.float32
        self.hook_z_reshaping_mode = False  # heads arrive flattened
        self._show()

    def _show(self) -> None:
        """Set the weights and settings that other tools read."""
        sae, bias = self.sae, self.sae.encoder_bias()
        self.device = sae.device
        self.W_enc = sae.encoder_directions().detach().T.to(self.dtype)
        self.W_dec = sae.W_dec.detach().to(self.dtype)
        self.b_enc = (
            (torch.zeros(sae.d_sae, device=sae.device) if bias is None else bias).detach().to(self.dtype)
        )
        self.b_dec = sae.b_dec.detach().to(self.dtype)
        if (b_mag := getattr(sae, "b_mag", None)) is not None:  # SAELens' name for a gated SAE's second bias
            self.b_mag = b_mag.detach().to(self.dtype)
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)

    def encode(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        """Return dense latents; signed ones keep their sign."""
        dense = self.sae.encode(x.to(self.device, torch.float32)).dense()
        return dense.view(*x.shape[:-1], self.cfg.d_sae).to(self.dtype)

    def decode(self, feature_acts: Float[Tensor, "*rows F"]) -> Float[Tensor, "*rows D"]:
        """Return the reconstruction of any latents, also of ones that the encoder never gives."""
        return (feature_acts.to(self.device, torch.float32) @ self.sae.W_dec + self.sae.b_dec).to(self.dtype)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Return the reconstruction of x."""
        return self.decode(self.encode(x))

    def to(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> "Bench":
        """Move to a device, change the dtype that is shown, or both, and return this object."""
        if isinstance(device, torch.dtype):  # torch accepts the dtype as the first argument
            device, dtype = None, device
        if device is not None:
            self.sae.to(device)
        self.dtype = dtype or self.dtype
        self._show()
        return self

    def fold_W_dec_norm(self) -> None:
        """Do nothing: decoder rows have norm 1 already, or their norms decide which latents fire."""

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Record the mode. Heads arrive flattened, so there is nothing to do."""
        self.hook_z_reshaping_mode = False

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        """Record the mode. Nothing is reshaped even so: both tools flatten heads before they encode."""
        self.hook_z_reshaping_mode = True

    @property
    def activation_fn(self) -> Any:
        """SAELens' TopK, whatever the architecture.

        When SAEDashboard sees it, it encodes all latents and selects the ones it wants. Otherwise it slices the weights of
        those latents, which is right for SAELens' own classes only."""
        from sae_lens.saes.topk_sae import TopK  # pyright: ignore[reportMissingImports]

        return TopK(self.cfg.d_sae)


def adapt(sae: SAE, origin: Origin) -> Bench:
    """Adapt an SAE for SAEBench or SAEDashboard, which need its model and a hook point in a block.

    `sae.workflows.import_sae.origin_of(run)` gives the origin of a run's SAE. Raises ForeignError when `origin` lacks the
    model or such a hook point."""
    layer = layer_of(origin.hook)
    if origin.model is None or origin.hook is None or layer is None:
        raise ForeignError(
            f"the SAE reads {origin.hook} of {origin.model}: SAEBench and SAEDashboard need the name of the model and a "
            f"hook point in a block, as in Origin('gpt2', 'blocks.8.hook_resid_pre')"
        )
    facts, context = origin.facts, origin.facts.get("context_size")
    cfg = BenchConfig(
        model_name=origin.model,
        d_in=sae.d_model,
        d_sae=sae.d_sae,
        hook_layer=layer,
        hook_name=origin.hook,
        architecture=name_of(sae.cfg),
        dtype="float32",
        device=str(sae.device),
        context_size=context if isinstance(context, int) else None,
        prepend_bos=bool(facts.get("prepend_bos", True)),
        dataset_path=str(facts.get("dataset_path", "")),
        apply_b_dec_to_input=sae.pre_bias,
    )
    return Bench(sae, cfg)
