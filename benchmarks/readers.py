"""Do readers accept what is said of latents? Sheets for blind readers, and the shares they accept with intervals.

    python -m benchmarks.readers sheets runs/demo readers    # readers/sheet-*.md, and readers/key.json, which no reader may see
    python -m benchmarks.readers score readers one.csv two.csv

A sheet shows windows of each latent as its page does and three statements in random order: the rule of `sae explain`, the rule of another
latent of the sample, and the tokens at its strongest peaks. A reader says of each statement on its own whether it tells where the latent
fires: a CSV file with the columns latent, statement (a, b or c) and accept (1 or 0)."""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from sae.features.explanations import explanations_of
from sae.features.feature import FeatureStore
from sae.features.folder import Example

OWN, OTHER, TOKENS = KINDS = ("its rule", "another latent's rule", "its top tokens")
FEWEST = 10  # windows drawn at random from all in which a latent fires
STRONGEST, RANDOM, BEFORE, AFTER = 4, 8, 16, 6  # windows of either kind, and tokens around a peak
A_SHEET = 25
LETTERS = "abc"
INSTRUCTIONS = """Each item is one feature of a sparse autoencoder. It shows windows of text; «» marks the tokens on which the feature fires.
Say of each statement on its own, 1 or 0, whether you accept it: does it tell where this feature fires in most of the windows under
"windows drawn at random", well enough that you could have marked about half of them or more from the statement alone, and without
marking many more tokens than are marked? Several statements of an item can be right, or none.
Answer with lines `latent,statement,accept`, such as `123,a,0`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("sheets")
    making.add_argument("run", type=Path)
    making.add_argument("folder", type=Path)
    making.add_argument("--latents", type=int, default=200)
    making.add_argument("--seed", type=int, default=0)
    scoring = commands.add_parser("score")
    scoring.add_argument("folder", type=Path)
    scoring.add_argument("answers", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "sheets":
        make(FeatureStore(args.run / "features"), args.folder, args.latents, args.seed)
    else:
        score(args.folder, args.answers)


def make(features: FeatureStore, folder: Path, n: int, seed: int) -> None:
    """Write sheets about n latents that have a rule, drawn at random, and the key to them."""
    rng = np.random.default_rng(seed)
    explained = explanations_of(features)
    assert explained is not None, "run `sae explain` first"
    rules = {
        latent: found[0]
        for latent in range(len(features))
        if len(features.sampled(latent)) >= FEWEST
        and (found := [one for one in explained.of(latent) if one.sign == 1 and one.text])
    }
    drawn = [int(latent) for latent in rng.permutation(sorted(rules))[:n]]
    n = len(drawn)  # fewer where fewer latents have rules
    key: list[dict[str, Any]] = []
    for place, latent in enumerate(drawn):
        other = drawn[
            (place + n // 2) % n
        ]  # of another sheet: a reader does not meet its windows next to its rule
        peaks = dict.fromkeys(features.row(latent)["peak_tokens"])
        said = {
            OWN: rules[latent].text,
            OTHER: rules[other].text,
            TOKENS: "tokens such as " + ", ".join(f"“{text}”" for text in peaks),
        }
        kinds = [KINDS[index] for index in rng.permutation(len(KINDS))]
        key.append({"latent": latent, "kinds": kinds, "f1": rules[latent].f1.value, "said": said})
    folder.mkdir(parents=True)
    (folder / "key.json").write_text(json.dumps(key, ensure_ascii=False, indent=1), encoding="utf-8")
    for start in range(0, n, A_SHEET):
        items = [_item(features, one, rng) for one in key[start : start + A_SHEET]]
        name = f"sheet-{start // A_SHEET + 1}.md"
        (folder / name).write_text("\n".join([INSTRUCTIONS, *items]), encoding="utf-8")
    print(
        f"{len(rules):,} of {len(features):,} latents have a rule and {FEWEST} windows; {n} are in {folder}"
    )


def _item(features: FeatureStore, one: dict[str, Any], rng: np.random.Generator) -> str:
    latent = one["latent"]
    sampled = features.sampled(latent)
    some = [sampled[index] for index in rng.permutation(len(sampled))[:RANDOM]]
    lines = [f"\n## {latent}", "windows drawn at random:", *map(_window, some)]
    lines += ["strongest windows:", *map(_window, features.strongest(latent)[:STRONGEST]), "statements:"]
    return "\n".join(
        lines
        + [
            f"{letter}: fires on {one['said'][kind]}"
            for letter, kind in zip(LETTERS, one["kinds"], strict=True)
        ]
    )


def _window(example: Example) -> str:
    shown = range(max(example.peak - BEFORE, 0), min(example.peak + AFTER + 1, len(example.tokens)))
    text = "".join(
        f"«{example.tokens[at]}»" if example.values[at] > 0 else example.tokens[at] for at in shown
    )
    return "- " + text.replace("\n", "⏎")


def score(folder: Path, paths: list[Path]) -> None:
    """Print the share of each kind of statement that each reader accepts, and how well readers agree."""
    key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
    strong = np.array([one["f1"] is not None and one["f1"] >= 0.5 for one in key])
    accepted = np.stack([_accepted(key, path) for path in paths])  # [readers, latents, kinds]
    for name, chosen in (("all", strong | True), ("F1 of .5 or more", strong), ("below", ~strong)):
        print(f"{name}: {chosen.sum()} latents")
        for kind, said in enumerate(KINDS):
            each = [_share(row[chosen, kind]) for row in accepted]
            print(f"  {said}: {'; '.join(each)}; by both {_share(accepted[:, chosen, kind].min(0))}")
        gain = accepted[:, chosen, 0].mean(0) - accepted[:, chosen, 2].mean(0)
        print(f"  its rule less its top tokens: {_share(gain)}")
    if len(paths) == 2:
        one, two = (row.ravel() for row in accepted)
        by_chance = one.mean() * two.mean() + (1 - one.mean()) * (1 - two.mean())
        print(f"Cohen's kappa of the two readers: {((one == two).mean() - by_chance) / (1 - by_chance):.2f}")


def _accepted(key: list[dict[str, Any]], path: Path) -> np.ndarray:
    with path.open(encoding="utf-8", newline="") as file:
        said = {
            (int(row["latent"]), row["statement"].strip()): int(row["accept"]) for row in csv.DictReader(file)
        }
    return np.array(
        [[said[one["latent"], LETTERS[one["kinds"].index(kind)]] for kind in KINDS] for one in key], float
    )


def _share(values: np.ndarray) -> str:
    draws = np.random.default_rng(0).choice(values, (4000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
