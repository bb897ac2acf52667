"""A store too large for memory: written, verified, read once in shuffled order by a training; seconds and peak memory of each.

    python -m benchmarks.large --folder /somewhere/with/room [--gigabytes 20] [--width 4096]
The language model is a random GPT-2 of one block, of which the harvest needs only the embedding, so that writing is what takes the
time; the text is the embedded one, as often as it takes. Each command is `sae`'s own, in a process of its own. Everything made is
deleted at the end.
"""

import argparse
import json
import shutil
from itertools import cycle
from pathlib import Path

from activations import demo_assets
from benchmarks.timing import table, used_by

CONTEXT, BATCH, BYTES = 128, 2048, 2
HOOK = "blocks.0.hook_resid_pre"
HELD_OUT = 0.9  # of a store's documents, training reads nine in ten


def make_model(folder: Path, width: int) -> None:
    """Make a random GPT-2 that reads the embedded model's tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    file = str(demo_assets.model_folder() / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<|im_start|>", eos_token="<|im_end|>")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=width, n_layer=1, n_head=8, n_positions=CONTEXT)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_text(path: Path, tokens: int) -> None:
    """Write documents with enough text for this many tokens, at four to five letters per token and with a tenth to spare."""
    due = 1.1 * 4.5 * tokens
    with path.open("w") as out:
        for text in cycle(list(demo_assets.documents())):
            out.write(json.dumps({"text": text}) + "\n")
            due -= len(text)
            if due < 0:
                return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where there is room; made, and deleted")
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--width", type=int, default=4096)
    args = parser.parse_args()
    tokens = int(args.gigabytes * 1e9 / (args.width * BYTES)) // CONTEXT * CONTEXT
    args.folder.mkdir(parents=True)
    try:
        model, text, store = (args.folder / name for name in ("model", "texts.jsonl", "store"))
        make_model(model, args.width)
        make_text(text, tokens)
        harvest = [
            "--model",
            model,
            "--dataset",
            text,
            "--hooks",
            HOOK,
            "--context",
            CONTEXT,
            "--dtype",
            "float16",
        ]
        train = ["--arch.d-sae", 64, "--arch.k", 4, "--train.batch", BATCH]
        once = ["--train.steps", int(HELD_OUT * tokens) // BATCH, "--train.checkpoint-minutes", 10**6]
        found = {
            "harvest": used_by("harvest", *harvest, "--tokens", tokens, "--out", store),
            "verify": used_by("store", "verify", store),
            "train on all of it": used_by(
                "train", "topk", "--store", store, "--out", args.folder / "run", *train, *once
            ),
        }
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(args.folder)
    print(f"\n{size / 1e9:.1f} GB: {tokens:,} tokens of width {args.width:,} in float16\n")
    rows = [
        [name, f"{seconds:.0f}", f"{size / seconds / 1e6:.0f}", f"{memory / 1e9:.1f}"]
        for name, (seconds, _, memory) in found.items()
    ]
    print(table(["", "s", "MB/s", "peak memory, GB"], rows))


if __name__ == "__main__":
    main()
