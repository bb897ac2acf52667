"""`sae synthetic ARCH|all`: train an architecture, or all, on planted features and count how many of them it recovers."""

import math
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from activations.progress import show_progress
from sae.architectures import ARCHITECTURES, SAE, ArchConfig, TopKConfig, name_of
from sae.cli import arguments
from sae.cli.synthetic_all import AllMethods, run
from sae.config import TrainConfig
from sae.evaluation.recovery import FOUND, ROWS, Recovery, recovery
from sae.evaluation.structured import Structured
from sae.evaluation.synthetic import Gaussian, Heads, Independent, Tree
from sae.trust.planted import LEAST, judge
from sae.workflows.synthetic import train, train_controls

LABELS = {
    "nmse": "NMSE (fraction of variance unexplained)",
    "l0": "L0 (latents firing per row)",
    "dead": "latents that never fire",
    "mmcs": "MMCS, best cosine of each true feature",
    "mmcs_matched": "MMCS, matched one to one",
    "frr_80": "features recovered, cosine > 0.8",
    "frr_90": "features recovered, cosine > 0.9",
    "gamma": "gamma (below 1: shrinkage)",
    "l0_correlation": "correlation of L0 with the true number",
    "f1": "F1 of latents, as classifiers of their features",
    "precision": "precision of latents",
    "recall": "recall of latents",
    "mcc": "MCC, |cosine| of matched pairs",
    "uniqueness": "uniqueness, different features of latents",
    "parents_found": "parents found",
    "parent_recall": "recall of parents beside a child",
    "absorption": "absorption (about 0: none)",
}
AnyWorld = (
    Annotated[Independent, tyro.conf.subcommand("independent")]
    | Annotated[Heads, tyro.conf.subcommand("heads")]
    | Annotated[Tree, tyro.conf.subcommand("tree")]
    | Annotated[Structured, tyro.conf.subcommand("structured")]
    | Annotated[Gaussian, tyro.conf.subcommand("gaussian")]
)
ALL = "all"


@dataclass(frozen=True)
class Synthetic:
    """Train on planted features and print how many of them the SAE recovers. Nothing is written to disk."""

    arch: ArchConfig = field(default_factory=TopKConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    world: AnyWorld = field(default_factory=Independent)
    controls: bool = False
    """Also train the controls whose decoder or encoder stays random, and say whether the features are recovered (docs/trust.md)."""


def main(args: list[str]) -> int:
    """Parse, train, print."""
    settings = TrainConfig(steps=2500, batch=256, lr=1e-3, warmup_steps=0, decay_share=0.0)
    if args[:1] != [ALL]:
        arguments.choose(ARCHITECTURES, "architecture", "sae synthetic", args)
    presets: dict[str, Synthetic | AllMethods] = {
        name: Synthetic(sae.config(**sae.config.small(64, 3)), settings)
        for name, sae in ARCHITECTURES.items()
    }
    command = tyro.extras.subcommand_type_from_defaults(
        presets | {ALL: AllMethods()},
        {name: _summary(name, sae.config) for name, sae in ARCHITECTURES.items()}
        | {ALL: (AllMethods.__doc__ or "").strip()},
        prefix_names=False,
    )
    cfg = arguments.parse(command, "sae synthetic", args, tyro.conf.OmitSubcommandPrefixes)
    if isinstance(cfg, AllMethods):
        run(cfg)
        return 0
    sae = train(cfg.world, cfg.arch, cfg.train, show_progress)
    show(cfg, recovery(sae, cfg.world))
    if cfg.controls:
        show_controls(cfg, sae, train_controls(cfg.world, cfg.arch, cfg.train, show_progress))
    return 0


def show_controls(cfg: Synthetic, sae: SAE, controls: dict[str, SAE]) -> None:
    """Print the SAE beside its controls, and whether it has recovered the planted features."""
    judged = judge(sae, controls, cfg.world)
    table = Table(title=f"features found (cosine of {FOUND:g} or more), beside controls")
    for column in ("", "NMSE", "found", "this SAE finds more by", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in {"this SAE": sae, **controls}.items():
        measured, better = recovery(one, cfg.world), judged.better_by.get(name)
        difference = (
            (f"{better.value:+.3f}", f"{better.low:+.3f} to {better.high:+.3f}") if better else ("", "")
        )
        table.add_row(name.replace("-", " "), f"{measured.nmse:.4g}", f"{measured.frr_90:.3f}", *difference)
    Console().print(table)
    print(
        f"{judged.verdict}: it has found {judged.found.value:.1%} of the planted features (95 % interval {judged.found.low:.1%} to "
        f"{judged.found.high:.1%}); recovered means more than {LEAST:.0%}, and more than every control"
    )


def show(cfg: Synthetic, measured: Recovery) -> None:
    """Print the table of recovery."""
    world = cfg.world
    table = Table(
        title=f"{name_of(cfg.arch)} of {cfg.arch.d_sae} latents on {len(world.features)} planted features "
        f"({type(world).__name__.lower()}) in {world.d_model} dimensions, {ROWS:,} fresh rows"
    )
    table.add_column("")
    table.add_column("value", justify="right")
    for name, value in measured._asdict().items():
        table.add_row(LABELS[name], "-" if math.isnan(value) else f"{value:.4g}")
    Console().print(table)


def _summary(name: str, config: type) -> str:
    example = f"Example: sae synthetic {name} --arch.d-sae 96 --train.steps 2500 independent --n-features 96"
    return f"{(config.__doc__ or '').strip().splitlines()[0]}\n\n{example}"
