"""Train a TopK SAE on the demo's store and measure it on held-out documents: python examples/train.py --steps 300"""

from pathlib import Path

import tyro

import sae


def main(
    store: str = "stores/demo",
    out: Path = Path("runs/example"),
    d_sae: int = 2048,
    k: int = 32,
    steps: int = 600,
    batch: int = 1024,
    windows: int = 16,
) -> None:
    """Train, evaluate and print. Called again after a stop, it goes on from the newest checkpoint."""
    config = sae.RunConfig(
        store=store, arch=sae.TopKConfig(d_sae=d_sae, k=k), train=sae.TrainConfig(steps=steps, batch=batch)
    )
    run = sae.train(config, out, resume=True)
    evaluation = sae.evaluate(run, run.sae(), run.language_model(), windows)
    fvu = evaluation.estimates["fvu"]
    print(f"{run.path}: FVU {fvu.value:.3f} (95 % interval {fvu.low:.3f} to {fvu.high:.3f})")


if __name__ == "__main__":
    tyro.cli(main)
