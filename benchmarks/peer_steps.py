"""One TopK training step of each peer, through its own classes with its own defaults; the packages are in step.py's docstring.

Each function takes the shape and a batch to start from, and returns the step; it raises ImportError where its package is
not installed."""
# pyright: reportMissingImports=false

import contextlib
import io
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import Shape

Step = Callable[[Tensor], object]
Make = Callable[[Shape, Tensor], Step]
STEPS = 100_000  # of a long run: no peer is near its end, or changes what it does, while it is timed


def saelens(shape: Shape, x: Tensor) -> Step:
    """Return SAELens' step: SAETrainer.step on a TopKTrainingSAE."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.width, d_sae=shape.latents, k=shape.k))
    settings = SAETrainerConfig(
        total_training_samples=STEPS * shape.batch,
        train_batch_size_samples=shape.batch,
        lr_end=3e-5,  # as its runner derives it
    )
    trainer = SAETrainer(settings, sae, data_provider=iter([]))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def sparsify(shape: Shape, x: Tensor) -> Step:
    """Return sparsify's step with schedule-free SignSGD, its default."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    def optimizer(parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        made = ScheduleFreeWrapper(SignSGD(parameters, lr=25 * lr), momentum=0.95)
        made.train()
        return made

    return _sparsify(shape, x, optimizer)


def sparsify_adam(shape: Shape, x: Tensor) -> Step:
    """Return sparsify's step with Adam, as our trainer uses it."""
    return _sparsify(shape, x, lambda parameters, lr: torch.optim.Adam(parameters, lr=lr))


def _sparsify(
    shape: Shape, x: Tensor, optimizer: Callable[[list[torch.nn.Parameter], float], torch.optim.Optimizer]
) -> Step:
    """Return a step that does what sparsify's Trainer.fit does with a batch, which itself reads activations from a language
    model only."""
    with contextlib.redirect_stdout(io.StringIO()):
        from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=shape.latents, k=shape.k)
    sae = SparseCoder(shape.width, config, dtype=torch.float32)
    sae.b_dec.data = x.mean(0)
    made = optimizer(list(sae.parameters()), 2e-4 / (shape.latents / 2**14) ** 0.5)
    since_fired = torch.zeros(shape.latents, dtype=torch.long)

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = sae(x=x, y=x, dead_mask=None, total_variance=total_variance)
        fired = torch.zeros(shape.latents, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        made.step()
        made.zero_grad()
        since_fired.add_(len(x))
        since_fired[fired] = 0

    return step


def dictionary_learning(shape: Shape, x: Tensor) -> Step:
    """Return dictionary_learning's step: TopKTrainer.update."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=STEPS, activation_dim=shape.width, dict_size=shape.latents, k=shape.k, layer=0, lm_name="", device="cpu",
    )  # fmt: skip
    done = 0

    def step(x: Tensor) -> None:
        nonlocal done
        trainer.update(done, x)
        done += 1

    return step


def overcomplete(shape: Shape, x: Tensor) -> Step:
    """Return overcomplete's step: its train_sae over one batch, without its monitoring."""
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.train import train_sae

    sae = TopKSAE(shape.width, nb_concepts=shape.latents, top_k=shape.k)
    optimizer = torch.optim.Adam(sae.parameters(), lr=2e-4)

    def squared_error(x: Tensor, x_hat: Tensor, *codes: Tensor) -> Tensor:
        return (x - x_hat).square().mean()

    return lambda x: train_sae(sae, [x], squared_error, optimizer, nb_epochs=1, monitoring=0)


PEERS: dict[str, Make] = {
    "SAELens": saelens,
    "sparsify": sparsify,
    "sparsify, Adam": sparsify_adam,
    "dictionary_learning": dictionary_learning,
    "overcomplete": overcomplete,
}
