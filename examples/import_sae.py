"""Make a run of another tool's SAE and look at its code: python examples/import_sae.py --path exports/demo

`sae export saelens runs/demo --out exports/demo` makes such files of the demo's own SAE."""

from pathlib import Path

import tyro

import activations
import sae


def main(
    path: str = "exports/demo",
    out: Path = Path("runs/imported"),
    store: Path = Path("stores/demo"),
    rows: int = 256,
) -> None:
    """Import, encode some rows of the store and print how well they are reconstructed. `path` may also be hf:OWNER/REPOSITORY/PATH."""
    run = sae.import_sae(path, out, store=store)
    autoencoder = run.sae()
    x = next(iter(activations.ShuffledReader(run.store, run.hook, batch=rows, seed=0)))[0].float()
    code = autoencoder.encode(x)
    error = (x - autoencoder.decode(code)).square().sum() / (x - x.mean(0)).square().sum()
    print(
        f"{run.path}: {autoencoder.d_sae} latents, L0 {code.l0().float().mean():.1f}, FVU {error:.3f} on {len(x)} rows"
    )


if __name__ == "__main__":
    tyro.cli(main)
