"""Say which latents of a run never fire, and why: python examples/dead_latents.py --run runs/demo"""

from contextlib import nullcontext

import tyro

import sae
from sae.diagnosis.sample import DeadConfig
from sae.workflows.diagnose import diagnose_run


def main(run: str = "runs/demo", rows: int = 20_000, off_tokens: int = 4096, top: int = 5) -> None:
    """Print how many latents are dead, rare or dense, and the causes for the first dead ones."""
    folder = sae.Run(run)
    model = folder.language_model()  # reads random and shuffled text too: some latents fire on nothing else
    report = diagnose_run(folder, DeadConfig(rows=rows, off_tokens=off_tokens), lambda: nullcontext(model))
    print(report.record.kinds)
    for row in report.rows("dead")[:top]:
        print(f"latent {row['latent']}: {row['cause']}. {row['evidence']}")


if __name__ == "__main__":
    tyro.cli(main)
