"""SAEBench and SAEDashboard themselves run on a random model with an SAE of ours behind the adapter."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.architectures import ArchConfig
from sae.foreign import Origin
from sae.foreign.saebench import adapt
from tests.sae.exchanged import trained
from tests.sae.small import D, F, every_architecture

pytest.importorskip("sae_bench", reason="SAEBench is needed, in an environment of its own: make test-peers")
lens: Any = import_module("transformer_lens")  # of that environment, older than ours

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

HOOK, T = "blocks.0.hook_resid_post", 16


@pytest.fixture(scope="module")
def model() -> Any:
    """Build a model of two layers of width D over 50 tokens."""
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": D, "n_ctx": T, "d_head": 4, "n_heads": 2, "d_vocab": 50}
    return lens.HookedTransformer(lens.HookedTransformerConfig(act_fn="relu", seed=0, device="cpu", **sizes))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 50, (32, T), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def x(model: Any, tokens: Tensor) -> Tensor:
    """Return the activations at the hook point."""
    return model.run_with_cache(tokens)[1][HOOK].detach()


@every_architecture
def test_saedashboard_counts_what_the_sae_says(model, tokens, x, cfg: ArchConfig):
    vis = pytest.importorskip(
        "sae_dashboard.sae_vis_runner", reason="SAEDashboard is not installed: make test-peers"
    )
    from sae_dashboard.sae_vis_data import SaeVisConfig  # pyright: ignore[reportMissingImports]

    sae = trained(cfg)
    settings = {"features": [*range(F)], "minibatch_size_features": 7, "minibatch_size_tokens": 8}
    about = SaeVisConfig(hook_point=HOOK, device="cpu", dtype="float32", verbose=False, **settings)
    data = vis.SaeVisRunner(about).run(encoder=adapt(sae, Origin("toy", HOOK)), model=model, tokens=tokens)
    dense = sae.encode(x).dense().view(*tokens.shape, F)
    assert len(data.feature_data_dict) == F
    for latent, found in data.feature_data_dict.items():
        title = found.acts_histogram_data.title  # ACTIVATIONS<br>DENSITY = 12.500%; none where it never fires
        said = float(title.split("= ")[1].rstrip("%")) / 100 if title else 0.0
        assert said == pytest.approx((dense[..., latent] > 0).double().mean().item(), abs=6e-6)
        groups = found.sequence_data.seq_group_data
        shown = torch.tensor([one.feat_acts for group in groups for one in group.seq_data]).flatten()
        nearest = (shown[:, None] - dense[..., latent].flatten()).abs().amin(1)
        assert len(shown) and nearest.max() < 1e-4  # it rounds


@every_architecture
def test_saebench_measures_what_the_sae_does(model, tokens, x, cfg: ArchConfig):
    core = pytest.importorskip(
        "sae_bench.evals.core.main", reason="SAEBench is not installed: make test-peers"
    )
    from sae_bench.evals.core.eval_config import CoreEvalConfig  # pyright: ignore[reportMissingImports]
    from sae_bench.sae_bench_utils.general_utils import (  # pyright: ignore[reportMissingImports]
        load_and_format_sae,
    )

    sae = trained(cfg)
    _, bench, _ = load_and_format_sae("mine", adapt(sae, Origin("toy", HOOK)), "cpu")
    store = SimpleNamespace(
        get_batch_tokens=lambda n: tokens[:n],
        store_batch_size_prompts=len(tokens),
        context_size=T,
        normalize_activations="none",
        reset_input_dataset=lambda: None,
    )
    everything = dict.fromkeys(
        (
            "compute_kl compute_ce_loss compute_l2_norms compute_sparsity_metrics compute_variance_metrics "
            "compute_featurewise_density_statistics compute_featurewise_weight_based_metrics"
        ).split(),
        True,
    )
    asked = CoreEvalConfig(
        model_name="toy",
        batch_size_prompts=len(tokens),
        n_eval_reconstruction_batches=1,
        n_eval_sparsity_variance_batches=1,
        **everything,
    )
    found, of_features = core.run_evals(bench.to(device="cpu", dtype=torch.float32), store, model, asked)
    code = sae.encode(x)
    error = (x.flatten(0, 1) - sae.decode(code)).square().sum(1)
    assert found["sparsity"]["l0"] == pytest.approx(code.l0().double().mean().item(), rel=1e-5)
    assert found["shrinkage"]["l2_norm_out"] == pytest.approx(
        sae.decode(code).norm(dim=1).mean().item(), rel=1e-4
    )
    assert found["reconstruction_quality"]["mse"] == pytest.approx(
        error.mean().item() / error.numel(), rel=1e-3
    )
    density = (code.dense() > 0).double().mean(0).tolist()
    assert of_features["feature_density"] == pytest.approx(density, abs=1e-6)
    cosines = torch.cosine_similarity(sae.W_dec, sae.encoder_directions(), dim=1).tolist()
    assert of_features["encoder_decoder_cosine_sim"] == pytest.approx(cosines, abs=1e-4)
    assert found["model_behavior_preservation"]["kl_div_with_sae"] >= 0
