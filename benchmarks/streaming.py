"""Train while the language model runs: against the slower of its two parts, and eight SAEs at once against each part's sum.

    python -m benchmarks.streaming [--latents 2048] [--tokens 131072] [--repeats 2]

Each figure is that of whole `sae` commands, of one thread a process: a harvest into a store, a training on that store, a training on
a stream with one producer, and a sweep of eight seeds on one stream. Every command is run for the shuffle group's 32,768 tokens and
for `--tokens`, by turns, and what counts is the difference of the two: starting up, the first group, for which the trainer waits, and the
last, for which the producer does not work, are in both. The clock tells how well two cores are used, processor time (of producers
too) what work there is. A quiet machine of two cores is needed."""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from activations.store import Store
from benchmarks.timing import heading, table, used_by

GROUP, BATCH, SEEDS = 32_768, 2048, 8
HOOK = "blocks.10.hook_resid_post"
KINDS = ("harvest", "train", "stream", "sweep")


class Spent(NamedTuple):
    """Seconds of a command: by the clock, and of processors."""

    wall: float
    cpu: float


def spent(*args: object) -> Spent:
    """Run `sae` with these arguments on one thread a process."""
    used = used_by(*args, threads=1)
    return Spent(used.wall, used.cpu)


def one_round(folder: Path, tokens: int, latents: int) -> dict[str, Spent]:
    """Run every kind of command once for this many tokens, in a folder of its own."""
    store, text = folder / "store", ("--hooks", HOOK, "--dtype", "float16")
    harvest = spent("harvest", *text, "--tokens", tokens, "--out", store)
    opened = Store(store)
    steps = sum(opened.count(number, "train") for number in range(len(opened.shards))) // BATCH
    settings = (
        "--arch.d-sae", latents, "--train.steps", steps, "--train.batch", BATCH, "--train.held-out-every", 0,
        "--shuffle-tokens", GROUP,
    )  # fmt: skip
    stored = spent("train", "topk", "--store", store, "--out", folder / "stored", *settings)
    stream = (
        "--ring",
        "1GB",
        "--hook",
        HOOK,
        "--dtype",
        "float16",
        "--tokens",
        tokens,
        "--kept-tokens",
        GROUP,
    )
    streamed = spent("train", "topk", *stream, "--out", folder / "streamed", *settings)
    (folder / "sweep.toml").write_text(
        f'out = "{folder / "sweep"}"\nring = "1GB"\nshuffle_tokens = {GROUP}\nwindows = 0\nhook = "{HOOK}"\n'
        f'[stream]\ntokens = {tokens}\ndtype = "float16"\nkept_tokens = {GROUP}\n'
        f"[train]\nsteps = {steps}\nbatch = {BATCH}\nheld_out_every = 0\n"
        f'[[grid]]\narch = "topk"\nd_sae = {latents}\ntrain.seed = {list(range(SEEDS))}\n'
    )
    sweep = spent("sweep", folder / "sweep.toml")
    return dict(zip(KINDS, (harvest, stored, streamed, sweep), strict=True))


def main() -> None:
    """Print what each command took for the tokens that the longer has more, and the two ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=4 * GROUP)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    if args.tokens < 2 * GROUP:
        parser.error(f"--tokens {args.tokens}: at least {2 * GROUP}, two shuffle groups, is needed")
    rounds: list[dict[str, Spent]] = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            few = one_round(Path(folder) / "few", GROUP, args.latents)
            many = one_round(Path(folder) / "many", args.tokens, args.latents)
        rounds.append({kind: Spent(*np.subtract(many[kind], few[kind]).tolist()) for kind in KINDS})
    print(heading(f"576 x {args.latents:,}, {args.tokens - GROUP:,} tokens", 1))
    rows = [
        [
            kind,
            *(
                f"{statistics.median(getattr(each[kind], of) for each in rounds):.1f}"
                for of in ("wall", "cpu")
            ),
        ]
        for kind in KINDS
    ]
    print(table(["", "s", "s of processor"], rows))
    pace = [max(each["harvest"].wall, each["train"].wall) / each["stream"].wall for each in rounds]
    parts = [(each["harvest"].cpu + SEEDS * each["train"].cpu, each["sweep"].cpu) for each in rounds]
    serial = [each["sweep"].wall / (each["harvest"].wall + SEEDS * each["train"].wall) for each in rounds]
    print(
        f"\none SAE: {statistics.median(pace):.2f} of the pace of the slower part (by round: {listed(pace)})"
    )
    work = [together / alone for alone, together in parts]
    print(
        f"{SEEDS} SAEs: {statistics.median(work):.2f} times the processor time of one harvest and {SEEDS} trainings "
        f"({listed(work)}), {statistics.median(serial):.2f} times their time one after the other ({listed(serial)})"
    )


def listed(ratios: list[float]) -> str:
    """Return ratios, one a round, for print."""
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)


if __name__ == "__main__":
    main()
