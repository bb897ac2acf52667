"""Show what an SAE sees in a text, and what its strongest latents stand for: python examples/read_features.py --text "A text of yours." """

import tyro

import sae


def main(
    run: str = "runs/demo", text: str = "The king of Persia gave the city to his son.", top: int = 5
) -> None:
    """Print the latents with the highest values on the text, each with the words that it fires on most."""
    folder = sae.Run(run)
    features = sae.FeatureStore(folder.path / "features")
    packing = folder.store.spec.packing  # the text is cut into windows as the training text was
    reading = sae.read(folder.language_model(), folder.sae(), folder.hook, text, features, packing)
    print(f"FVU on this text: {reading.text_fvu:.3f}")
    for presence in reading.latents(by="value")[:top]:
        words = ", ".join(features.row(presence.latent)["peak_tokens"])
        print(
            f"latent {presence.latent}: {presence.peak:.2f} on {reading.tokens[presence.position]!r}; fires on {words}"
        )


if __name__ == "__main__":
    tyro.cli(main)
