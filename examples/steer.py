"""Write a text twice, with one latent turned up and without: python examples/steer.py --latent 17 --strength 2"""

import tyro

import activations
import sae
from sae.steering.measure import compare


def main(
    run: str = "runs/demo",
    latent: int = 17,
    strength: float = 1.5,
    prompt: str = "I think that",
    tokens: int = 30,
    seed: int = 0,
) -> None:
    """Print both texts. The strength is in multiples of the largest value that the latent had on real text."""
    folder = sae.Run(run)
    model = folder.language_model()
    features = sae.FeatureStore(folder.path / "features")
    louder = sae.Intervention(latent, "add", strength)
    steering = sae.Steering(folder.sae(), folder.hook, (louder,), sae.Calibration.of(features))
    ids = activations.prompt_ids(model, prompt, first=folder.first_tokens)
    sampling = activations.Sampling(tokens=tokens, temperature=0.7)
    (comparison,) = compare(model, steering, ids, sampling, seeds=(seed,))
    print(f"as it is: {comparison.baseline.text!r}")
    print(f"steered:  {comparison.steered.text!r}")
    for remark in comparison.remarks:
        print(remark)


if __name__ == "__main__":
    tyro.cli(main)
