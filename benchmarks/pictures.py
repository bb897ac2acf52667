"""Draw the picture of each method's page in docs/methods/, on planted features, where the true answer is known.

    python -m benchmarks.pictures [--only gba,mfr]
Some minutes of one core. Needs kaleido, and a browser that it finds (Chromium or Chrome), to write SVG. Prints the numbers that the
pages quote beside their pictures."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from benchmarks.acceptance import arch, settings
from sae.architectures import ARCHITECTURES, GBA, SAE, GBAConfig, JumpReLU
from sae.architectures.kron import mand
from sae.evaluation.recovery import ROWS, cosines, recovery
from sae.evaluation.synthetic import Gaussian, Independent, Tree, World
from sae.training.trainer import Trainer, fit
from sae.workflows.synthetic import begin, train

FOLDER = Path(__file__).parent.parent / "docs" / "methods"
BLUE, ORANGE, GREY, PALE = "#2563ab", "#d1661f", "#8a8f98", "rgba(138, 143, 152, 0.25)"
BINS = 20
MARKS: dict[str, Any] = {"mode": "lines+markers", "marker": {"size": 6}}


def topk(steps: int = 2500) -> go.Figure:
    """Draw dead latents and FVU in training, with and without AuxK. Half of the latents begin with an encoder shrunk to a
    fiftieth."""
    figure = panels("dead latents of 64", "FVU")
    world = Independent()
    for name, weight, colour in (("with AuxK", 1 / 32, BLUE), ("without", 0.0, ORANGE)):
        trainer = begin(world, arch("topk", d_sae=64, k=3, aux_weight=weight), settings(0, steps))
        trainer.sae.W_enc.data[:, :32] *= 0.02
        add_curves(figure, history(trainer, world), ("dead", "fvu"), name, colour)
    return titled(figure, "step")


def batchtopk(steps: int = 2500) -> go.Figure:
    """Draw how many latents fire on rows made of 0 to 6 features."""
    world = Independent(least=0, most=6)
    figure = by_number(world, {"TopK": "topk", "BatchTopK": "batchtopk"}, steps, d_sae=64, k=3)
    return titled(figure, "true features of a row", "latents used")


def adaptivek(steps: int = 2500) -> go.Figure:
    """Draw how many latents fire on rows of 1 to 10 features, their number the label."""
    world = Independent(d_model=48, n_features=96, least=1, most=10, low=0.8, high=1.2, common=1.0)
    figure = by_number(world, {"AdaptiveK": "adaptivek"}, steps, d_sae=96, k_min=1, k_max=10)
    add_means(figure, "TopK, k = 6", number_used(world, "topk", steps, d_sae=96, k=6), ORANGE)
    return titled(figure, "true features of a row", "latents used")


def topafa(steps: int = 5000) -> go.Figure:
    """Draw how many latents fire on rows of 1 to 6 orthonormal features, with no k set."""
    world = Independent(d_model=24, n_features=24, least=1, most=6, orthonormal=True)
    figure = by_number(world, {"top-AFA": "topafa"}, steps, d_sae=24, afa_weight=0.0)
    return titled(figure, "true features of a row", "latents used")


def abstopk(steps: int = 2500) -> go.Figure:
    """Draw the value of each feature's best latent by the feature's coefficient, of either sign."""
    world = Independent(n_features=48, signed=True)
    figure = panels("AbsTopK", "TopK", shared_yaxes=True)
    for column, name in enumerate(("abstopk", "topk"), 1):
        sae = train(world, arch(name, d_sae=48, k=3), settings(0, steps))
        print(f"{name} on signed features: NMSE {recovery(sae, world, ROWS).nmse:.3f}")
        add_sizes(figure, sae, world, column)
    return titled(figure, "true coefficient", "value of its latent")


def relu(steps: int = 4000) -> go.Figure:
    """Draw the lengths of ReLU's reconstructions, which are too short."""
    return lengths("relu", steps, l1_weight=0.3)


def gated(steps: int = 4000) -> go.Figure:
    """Draw the lengths of Gated's reconstructions, which are as they should be."""
    return lengths("gated", steps, l1_weight=0.3)


@torch.no_grad()
def jumprelu(steps: int = 4000) -> go.Figure:
    """Draw the pre-activations of the latent that fits its feature best, with the feature and without, and its threshold."""
    world = Independent(n_features=48)
    cfg = arch("jumprelu", d_sae=48, sparsity_weight=0.05, bandwidth=0.1)
    with torch.enable_grad():
        sae = train(world, cfg, settings(0, steps, scale_inputs=False))
    assert isinstance(sae, JumpReLU)
    x, codes = rows_of(world)
    found = cosines(world.features, sae.W_dec)
    feature, latent = divmod(int(found.argmax()), sae.d_sae)
    y, threshold = sae.dense_pre_activations(x)[:, latent], sae.threshold[latent].item()
    figure = panels("")
    for name, chosen, colour in (
        ("rows without the feature", codes[:, feature] == 0, ORANGE),
        ("rows with it", codes[:, feature] != 0, BLUE),
    ):
        edges = torch.linspace(-1, 1.8, 71)
        share = torch.histogram(y[chosen], edges).hist / chosen.sum()
        middles = (edges[1:] + edges[:-1]) / 2
        figure.add_scatter(
            x=listed(middles), y=listed(share), name=name, line={"color": colour, "shape": "hvh"}
        )
    figure.add_vrect(
        threshold - sae.bandwidth / 2, threshold + sae.bandwidth / 2, fillcolor=GREY, opacity=0.3
    )
    figure.add_vline(threshold, line_dash="dash", annotation_text="threshold")
    figure.update_yaxes(type="log")
    return titled(figure, "pre-activation", "share of rows")


def kron(steps: int = 0) -> go.Figure:
    """Draw the AND of two factors beside other ways to join them. Nothing is trained."""
    t = torch.linspace(-0.5, 3, 141)
    figure = panels("u against v = 1", "u = v")
    for column, v in enumerate((torch.ones_like(t), t), 1):
        joined = {"mAND": mand(t, v), "product": t.relu() * v.relu(), "smaller": torch.minimum(t, v).relu()}
        for (name, values), colour in zip(joined.items(), (BLUE, ORANGE, GREY), strict=True):
            line = {"color": colour, "dash": "solid" if name == "mAND" else "dot"}
            figure.add_scatter(
                x=listed(t), y=listed(values), name=name, line=line, showlegend=column == 1, row=1, col=column
            )
    figure.update_yaxes(range=[-0.1, 3])
    return titled(figure, "u", "latent")


@torch.no_grad()
def gba(steps: int = 6000) -> go.Figure:
    """Draw how often each latent fires, sorted within its group, beside the group's target."""
    own = {"groups": 4, "p_first": 0.1, "p_last": 0.01}
    world, cfg = Gaussian(), arch("gba", d_sae=256, **own)
    with torch.enable_grad():
        sae = train(world, cfg, settings(0, steps))
    assert isinstance(sae, GBA)
    assert isinstance(cfg, GBAConfig)
    x, _ = rows_of(world)
    density = (sae.encode(x).dense() != 0).float().mean(0)
    figure = panels("")
    for group, target in enumerate(cfg.targets().tolist()):
        of_group = (sae.group == group).nonzero()[:, 0]
        own = density[of_group].sort(descending=True).values.clamp_min(1 / ROWS)
        first = group == 0
        figure.add_scatter(
            x=listed(of_group), y=listed(own), name="latents", line_color=BLUE, showlegend=first
        )
        figure.add_scatter(
            x=listed(of_group[[0, -1]]), y=[target] * 2, name="target", line={"color": ORANGE, "dash": "dash"},
            showlegend=first,
        )  # fmt: skip
    figure.update_yaxes(type="log")
    return titled(figure, "latents, by group", "share of rows it fires on")


def mfr(steps: int = 2000) -> go.Figure:
    """Draw the agreement of two peers during training, and the FVU of the peer in use."""
    figure = panels("agreement of the peers", "FVU")
    world = Independent()
    for name, weight, colour in (("penalty 0.05", 0.05, BLUE), ("none", 0.0, ORANGE)):
        trainer = begin(world, arch("mfr", d_sae=96, k=3, penalty_weight=weight), settings(0, steps))
        add_curves(figure, history(trainer, world), ("agreement", "fvu"), name, colour)
    return titled(figure, "step")


@torch.no_grad()
def matryoshka(steps: int = 3000) -> go.Figure:
    """Draw how often the latent nearest to each planted feature fires, by the child that is active beside the parent."""
    world = Tree()
    figure = panels("one prefix", "prefixes 1, 3, 9", shared_yaxes=True)
    x, codes = rows_of(world)
    children = codes[:, 1 : 1 + world.children] != 0
    beside = [~children.any(1), *children.T]
    labels = ["parent", *(f"child {n}" for n in range(1, world.children + 1))]
    for column, prefixes in enumerate(((1.0,), (1 / 9, 3 / 9, 1.0)), 1):
        with torch.enable_grad():
            sae = train(world, arch("matryoshka", d_sae=9, k=1.4, prefixes=prefixes), settings(0, steps))
        nearest = cosines(world.features[: 1 + world.children], sae.W_dec).argmax(1)
        fires = sae.encode(x).dense()[:, nearest] != 0
        parent = codes[:, 0] != 0
        shares = torch.stack([fires[parent & rows].float().mean(0) for rows in beside], 1)
        figure.add_heatmap(
            x=["alone", *labels[1:]], y=labels, z=[listed(row) for row in shares], zmin=0, zmax=1,
            colorscale=[[0, "white"], [1, BLUE]], texttemplate="%{z:.2f}", showscale=False, row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return titled(figure, "parent's rows", "latent nearest to")


@torch.no_grad()
def lengths(name: str, steps: int, **changes: Any) -> go.Figure:
    """Draw the length of one method's reconstructions against the length of the rows, in unscaled inputs, in which the
    method's sparsity weight was measured."""
    world = Independent(n_features=48)
    with torch.enable_grad():
        sae = train(world, arch(name, d_sae=48, **changes), settings(0, steps, scale_inputs=False))
    print(f"{name}: gamma {recovery(sae, world, ROWS).gamma:.3f}")
    x, _ = rows_of(world)
    x_hat = sae(x)
    length = x_hat.norm(dim=1)
    figure = panels("")
    add_spread(figure, (x * x_hat).sum(1) / length, length, 1)
    return titled(figure, "length of the row along it", "length of the reconstruction")


def by_number(world: World, methods: dict[str, str], steps: int, **changes: Any) -> go.Figure:
    """Draw the mean number of latents that fire by the true number of features in a row, with a line for each method."""
    figure, means = panels(""), {}
    for (label, name), colour in zip(methods.items(), (ORANGE, BLUE)[-len(methods) :], strict=True):
        means = number_used(world, name, steps, **changes)
        add_means(figure, label, means, colour)
    dotted = {"color": GREY, "dash": "dot"}
    figure.add_scatter(x=list(means), y=list(means), name="as many", mode="lines", line=dotted)
    return figure


def number_used(world: World, name: str, steps: int, **changes: Any) -> dict[int, float]:
    """Train a method on the world and return: true number of features in a row -> mean number of latents that fire."""
    sae = train(world, arch(name, **changes), settings(0, steps))
    print(f"{name} on {type(world).__name__}: NMSE {recovery(sae, world, ROWS).nmse:.3f}")
    x, codes = rows_of(world)
    true, used = (codes != 0).sum(1), sae.encode(x).l0().float()
    return {int(number): used[true == number].mean().item() for number in true.unique()}


def add_means(figure: go.Figure, name: str, means: dict[int, float], colour: str) -> None:
    """Add a line of means."""
    figure.add_scatter(x=list(means), y=list(means.values()), name=name, line_color=colour, **MARKS)


@torch.no_grad()
def add_sizes(figure: go.Figure, sae: SAE, world: World, column: int) -> None:
    """Add the values of each feature's best latent where the feature is active, by its coefficient."""
    x, codes = rows_of(world)
    nearest = cosines(world.features, sae.W_dec)
    best = nearest.abs().argmax(1)
    signs = nearest.gather(1, best[:, None])[:, 0].sign()
    rows, features = codes.nonzero(as_tuple=True)
    add_spread(
        figure, codes[rows, features], (sae.encode(x).dense()[:, best] * signs)[rows, features], column
    )


def add_spread(figure: go.Figure, true: Tensor, values: Tensor, column: int) -> None:
    """Add the median and the 10 to 90 % range of values, in bins of what they should be."""
    edges = torch.linspace(true.min().item(), true.max().item(), BINS + 1)
    place = torch.bucketize(true, edges[1:-1])
    filled = torch.bincount(place, minlength=BINS).gt(len(true) // 1000).nonzero()[:, 0]
    middles = listed((edges[1:] + edges[:-1])[filled] / 2)
    low, median, high = (
        [values[place == number].quantile(q).item() for number in filled] for q in (0.1, 0.5, 0.9)
    )
    where = {"row": 1, "col": column, "showlegend": column == 1}
    spread = {"type": "data", "symmetric": False, "color": PALE, "thickness": 6, "width": 0}
    above, below = (
        [abs(end - middle) for end, middle in zip(ends, median, strict=True)] for ends in (high, low)
    )
    figure.add_scatter(
        x=middles, y=median, mode="markers", name="median, 10 to 90 %", marker_color=BLUE,
        error_y={**spread, "array": above, "arrayminus": below}, **where,
    )  # fmt: skip
    ends = [middles[0], middles[-1]]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", name="true", line={"color": GREY, "dash": "dot"}, **where
    )


def add_curves(
    figure: go.Figure, rows: list[dict[str, float]], names: tuple[str, str], label: str, colour: str
) -> None:
    """Add two of the log's columns over steps, one in each panel."""
    for column, name in enumerate(names, 1):
        figure.add_scatter(
            x=[row["step"] for row in rows], y=[row[name] for row in rows], name=label, line_color=colour,
            showlegend=column == 1, row=1, col=column,
        )  # fmt: skip


def history(trainer: Trainer, world: World) -> list[dict[str, float]]:
    """Train to the end; the log's rows."""
    rows: list[dict[str, float]] = []
    batches = ((x, x, None) for x, _ in world.batches(trainer.cfg.batch, trainer.cfg.seed))
    fit(trainer, batches, log=rows.append, save=lambda: None)
    return rows


def rows_of(world: World) -> tuple[Tensor, Tensor]:
    """Return fresh rows and the codes they are made of."""
    return world.draw(ROWS, torch.Generator().manual_seed(10**6))


def panels(*titles: str, **options: Any) -> go.Figure:
    """Return an empty figure with one panel for each title."""
    return make_subplots(rows=1, cols=len(titles), subplot_titles=titles if any(titles) else None, **options)


def titled(figure: go.Figure, x: str, y: str = "") -> go.Figure:
    """Name the figure's axes and give it the size and colours of the pages."""
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y, col=1)
    return figure.update_layout(
        template="plotly_white", width=680, height=300, margin={"l": 60, "r": 10, "t": 30, "b": 45}, font_size=12
    )  # fmt: skip


def listed(values: Tensor) -> list[float]:
    """Return the numbers as a list, rounded to keep the file small."""
    return [round(value, 4) for value in values.tolist()]


def learning(name: str, steps: int = 2500) -> go.Figure:
    """Draw error and L0 in training, for a method that has no picture of its own."""
    figure, world, config = panels("FVU", "L0"), Independent(), ARCHITECTURES[name].config
    trainer = begin(world, config(**config.small(64, 3)), settings(0, steps))
    add_curves(figure, history(trainer, world), ("fvu", "l0"), name, BLUE)
    return titled(figure, "step")


PICTURES: dict[str, Callable[..., go.Figure]] = {name: partial(learning, name) for name in ARCHITECTURES} | {
    "topk": topk, "batchtopk": batchtopk, "abstopk": abstopk, "adaptivek": adaptivek, "kron": kron, "topafa": topafa,
    "gba": gba, "mfr": mfr, "relu": relu, "gated": gated, "jumprelu": jumprelu, "matryoshka": matryoshka,
}  # fmt: skip


def main() -> None:
    """Draw those asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PICTURES), help="methods, separated by commas")
    for name in parser.parse_args().only.split(","):
        path = FOLDER / f"{name}.svg"
        PICTURES[name]().write_image(path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
