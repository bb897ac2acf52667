"""Compare the held-out FVU of a TopK SAE from this workbench's trainer with that from other packages' own trainers.

Run it once per contestant, each in an environment that has that package:
    python benchmarks/peers.py ours --store stores/demo
    python benchmarks/peers.py saelens --store stores/demo               # pip install sae-lens==6.54.12
    python benchmarks/peers.py dictionary_learning --store stores/demo   # pip install dictionary-learning==0.1.0
    python benchmarks/peers.py sparsify --store stores/demo              # pip install eai-sparsify==1.3.3
    python benchmarks/peers.py sparsify_adam --store stores/demo         # the other of its optimizers
k, width, tokens, steps and rows are equal: all read the very same batches, scaled by one constant as each package's own
runner does (sparsify's does not scale them). The peers train with their own loss, optimizer and schedule; --lr replaces
the learning rate of all, and `--lr search` tries rates a factor of 2 apart until the best has a worse neighbour on both
sides. Where this project is not installed, set PYTHONPATH=. and install torch, safetensors, numpy and jaxtyping; a search
needs all of its dependencies.
"""
# pyright: reportMissingImports=false

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from activations.shuffle import ShuffledReader
from activations.store import Store

FIRST = 2.0**-10  # where a search for the best rate begins
Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]  # raw rows -> reconstruction, L0


def ours(store: Store, hook: str, args: argparse.Namespace) -> Reconstruct:
    from activations.shuffle import sample
    from sae.architectures import TopKConfig, build
    from sae.architectures.shared import geometric_median
    from sae.config import TrainConfig
    from sae.training.trainer import Trainer, fit

    reader = ShuffledReader(store, hook, args.batch, seed=args.seed)
    settings = TrainConfig(steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed)
    scale = (store.width(hook) / store.mean_square_norm(hook)) ** 0.5
    sae = build(TopKConfig(d_sae=args.width, k=args.k), store.width(hook), args.seed)
    x = sample(reader, 32_768).x * scale
    sae.initialise(x, geometric_median(x), torch.Generator().manual_seed(args.seed))
    trainer = Trainer(sae, settings.resolved(reader.rows, sae.cfg), scale)
    fit(trainer, iter(reader), log=lambda row: None, save=lambda: None)
    sae.fold_input_scale(scale)

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        code = sae.encode(x)
        return sae.decode(code), code.l0()

    return reconstruct


def saelens(store: Store, hook: str, args: argparse.Namespace) -> Reconstruct:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(args.seed)
    scale = (store.width(hook) / store.mean_square_norm(hook)) ** 0.5  # its expected_average_only_in
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=store.width(hook), d_sae=args.width, k=args.k))
    settings = SAETrainerConfig(
        total_training_samples=args.steps * args.batch,
        train_batch_size_samples=args.batch,
        lr=args.lr or 3e-4,
        lr_end=(args.lr or 3e-4) / 10,  # what its runner's configuration derives
        lr_warm_up_steps=args.steps // 20 if args.lr else 0,
        lr_decay_steps=args.steps // 5 if args.lr else 0,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(settings, sae, rows(store, hook, args, scale)).fit()

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = sae.encode(x * scale)
        return sae.decode(latents) / scale, (latents != 0).sum(1)

    return reconstruct


def dictionary_learning(store: Store, hook: str, args: argparse.Namespace) -> Reconstruct:
    from dictionary_learning.trainers.top_k import TopKTrainer

    scale = store.mean_square_norm(hook) ** -0.5  # its norm_factor
    trainer = TopKTrainer(
        steps=args.steps,
        activation_dim=store.width(hook),
        dict_size=args.width,
        k=args.k,
        layer=0,
        lm_name="",
        lr=args.lr,
        warmup_steps=args.steps // 20,
        decay_start=int(args.steps * 0.8),
        seed=args.seed,
        device="cpu",
    )
    batches = rows(store, hook, args, scale)
    for step in range(args.steps):
        trainer.update(step, next(batches))

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = trainer.ae.encode(x * scale)
        return trainer.ae.decode(latents) / scale, (latents != 0).sum(1)

    return reconstruct


def sparsify(store: Store, hook: str, args: argparse.Namespace) -> Reconstruct:
    """Train by its default, schedule-free SignSGD, which has no warmup and no decay."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    lr = args.lr or 5e-3 / (args.width / 2**14) ** 0.5

    def optimizer(parameters: list[torch.nn.Parameter]) -> ScheduleFreeWrapper:
        made = ScheduleFreeWrapper(SignSGD(parameters, lr=lr), momentum=0.95)
        made.train()
        return made

    return _sparsify(store, hook, args, optimizer, lambda made: None, lambda made: made.eval())


def sparsify_adam(store: Store, hook: str, args: argparse.Namespace) -> Reconstruct:
    """Train by Adam with its linear decay, and a warmup of a twentieth of the steps in place of its thousand."""
    from transformers import get_linear_schedule_with_warmup

    lr = args.lr or 2e-4 / (args.width / 2**14) ** 0.5
    schedules = []

    def optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.Adam(parameters, lr=lr)
        schedules.append(get_linear_schedule_with_warmup(made, args.steps // 20, args.steps))
        return made

    return _sparsify(store, hook, args, optimizer, lambda made: schedules[0].step(), lambda made: None)


def _sparsify(
    store: Store,
    hook: str,
    args: argparse.Namespace,
    optimizer: Callable[[list[torch.nn.Parameter]], Any],
    after_step: Callable[[Any], None],
    after_training: Callable[[Any], None],
) -> Reconstruct:
    """Do what its Trainer.fit does with each batch; the Trainer itself reads activations from a language model only."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(args.seed)
    config = SparseCoderConfig(num_latents=args.width, k=args.k)
    sae = SparseCoder(store.width(hook), config, dtype=torch.float32)
    made = optimizer(list(sae.parameters()))
    batches = rows(store, hook, args, 1.0)
    for step in range(args.steps):
        x = next(batches)
        if not step:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x=x, y=x, total_variance=(x - x.mean(0)).pow(2).sum())
        (out.fvu + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        made.step()
        made.zero_grad()
        after_step(made)
    after_training(made)

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, _ = sae.encode(x)
        return sae.decode(values, indices), (values != 0).sum(1)

    return reconstruct


def rows(store: Store, hook: str, args: argparse.Namespace, scale: float) -> Iterator[Tensor]:
    """Yield the batches that every package trains on, in one order."""
    for batch in ShuffledReader(store, hook, args.batch, seed=args.seed):
        yield batch.x * scale


@torch.no_grad()
def held_out_fvu(reconstruct: Reconstruct, store: Store, hook: str) -> tuple[float, float]:
    """Return FVU (centred per dimension, float64) and mean L0 on the held-out documents."""
    x = torch.cat([piece for piece, *_ in store.batches(hook, 2048, "held-out")])
    error, l0 = 0.0, 0.0
    for piece in x.split(2048):
        x_hat, active = reconstruct(piece)
        error += (x_hat - piece).double().square().sum().item()
        l0 += active.sum().item()
    return error / (x.double() - x.double().mean(0)).square().sum().item(), l0 / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    contestants = {f.__name__: f for f in (ours, saelens, dictionary_learning, sparsify, sparsify_adam)}
    parser.add_argument("contestant", choices=contestants)
    parser.add_argument("--store", required=True)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument(
        "--lr",
        type=rate,
        help="for all alike, or search for the best; each package's own default when left out",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    store = Store(args.store)
    hook = store.only_hook()
    if args.lr != "search":
        measure(contestants[args.contestant], store, hook, args)
        return
    from sae.training.rates import next_rate

    fvus: dict[float, float] = {}
    while (lr := next_rate(fvus, FIRST)) is not None:
        args.lr = lr
        fvus[lr] = measure(contestants[args.contestant], store, hook, args)


def rate(text: str) -> float | str:
    """Parse a learning rate, or the word `search`."""
    return text if text == "search" else float(text)


def measure(train: Callable[..., Reconstruct], store: Store, hook: str, args: argparse.Namespace) -> float:
    """Train one contestant and print a row; its held-out FVU."""
    started = time.perf_counter()
    reconstruct = train(store, hook, args)
    seconds = time.perf_counter() - started
    fvu, l0 = held_out_fvu(reconstruct, store, hook)
    print(
        f"| {args.contestant} | lr {args.lr or 'default'} | seed {args.seed} | held-out FVU {fvu:.4f} | L0 {l0:.2f} "
        f"| {args.steps} steps of {args.batch}, width {args.width}, k {args.k} | {seconds:.0f} s |",
        flush=True,
    )
    return fvu


if __name__ == "__main__":
    main()
