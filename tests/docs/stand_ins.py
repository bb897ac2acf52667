"""Stand-ins from the toy world for the folders, files and numbers that the pages name, so that their code runs anywhere."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

# replace numbers that would take hours
SMALLER = {
    "--tokens": "1600", "--arch.d-sae": "32", "--arch.k": "4", "--arch.k-min": "1", "--arch.k-max": "8",
    "--train.steps": "10",
}  # fmt: skip
# options that are added to a command where it does not give them
ADDED = {
    "harvest": {
        "--model": "gpt2", "--dataset": "notes.jsonl", "--tokens": "1600", "--context": "16", "--shard-tokens": "512",
        "--batch-tokens": "128",
    },
    "train": {"--train.steps": "10", "--train.batch": "64", "--train.log-every": "5", "--arch.d-sae": "32"},
    "train topk": {"--arch.k": "4"},
    "synthetic": {"--train.steps": "10"},
    "evaluate": {"--windows": "4"},
    "dead": {"--rows": "256", "--off-tokens": "64"},
    "steer": {"--tokens": "4"},
    "lens": {"--latents": "4", "--jacobian.rows": "300"},
}  # fmt: skip


def furnish(folder: Path, world: Path) -> Path:
    """Fill `folder` with the toy world under the names that the pages use, and return it.

    The names are `gpt2`, `notes.jsonl`, `notes.txt`, `stores/demo`, `runs/demo`, `runs/bare`, a run without features, and
    `dumps/gpt2`, activations in files."""
    (folder / "stores").mkdir()
    (folder / "gpt2").symlink_to(world / "model")
    (folder / "notes.jsonl").symlink_to(world / "text.jsonl")
    shutil.copytree(world / "store", folder / "stores" / "demo")  # its geometry is kept beside it
    lines = (world / "text.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    (folder / "notes.txt").write_text("\n\n".join(texts), encoding="utf-8")
    for name in ("demo", "bare"):
        run = shutil.copytree(world / "runs" / "toy", folder / "runs" / name)
        about = json.loads((run / "run.json").read_text(encoding="utf-8"))
        about["config"]["store"] = "stores/demo"
        (run / "run.json").write_text(json.dumps(about), encoding="utf-8")
    shutil.rmtree(folder / "runs" / "bare" / "features")
    dump = folder / "dumps" / "gpt2"
    dump.mkdir(parents=True)
    columns = {"rows": torch.randn(400, 16, generator=torch.Generator().manual_seed(0))}
    columns |= {"tokens": torch.arange(400) % 250 + 2, "documents": torch.arange(400) // 10}
    save_file(columns, dump / "part-0.safetensors")
    about = {
        "format": 1,
        "hook": "blocks.0.hook_resid_post",
        "model": "gpt2",
        "width": 16,
        "tokenizer": "gpt2",
    }
    (dump / "activations.json").write_text(json.dumps(about))
    return folder


def smaller(words: list[str]) -> list[str]:
    """Return arguments of `sae` that the toy world can run: fewer tokens, latents and steps, hook points of a model with two blocks."""
    words = list(words)
    for place, word in enumerate(words[:-1]):
        words[place + 1] = SMALLER.get(word, words[place + 1])
        if word == "--hooks":
            words[place + 1] = ",".join(_toy(hook) for hook in words[place + 1].split(","))
    added = {**ADDED.get(words[0], {}), **ADDED.get(" ".join(words[:2]), {})}
    return words + [part for flag, value in added.items() if flag not in words for part in (flag, value)]


def _toy(hook: str) -> str:
    """Return the hook point of the same kind in one of the toy model's two blocks."""
    blocks, number, rest = hook.split(".", 2)
    return f"{blocks}.{int(number) % 2}.{rest}"
