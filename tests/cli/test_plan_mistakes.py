"""What `sae plan` cannot plan is one line that names the option, and nothing is written."""

from pathlib import Path

import pytest

from tests.cli.commands import Server

MISTAKES = {
    "nothing to train on": (["train", "topk"], ["--store FOLDER", "--width"]),
    "a store and a width": (["train", "topk", "--store", "a", "--width", "8"], ["--store", "--width, --tokens"]),
    "a store and a format": (["train", "topk", "--store", "a", "--dtype", "int8"], ["--store", "--dtype"]),
    "a producer without a ring": (
        ["train", "topk", "--width", "8", "--tokens", "10000", "--producers", "2"], ["--producers", "--ring 20GB"],
    ),
    "a model without a ring": (
        ["train", "topk", "--width", "8", "--tokens", "10000", "--forward-parameters", "1e6"], ["--forward-parameters", "--ring 20GB"],
    ),
    "a store that is not there": (["train", "topk", "--store", "/nowhere"], ["/nowhere"]),
    "fewer tokens than a batch": (["train", "topk", "--width", "8", "--tokens", "10"], ["tokens = 10", "2048"]),
    "no rank": (["train", "topk", "--width", "8", "--tokens", "10000", "--ranks", "0"], ["ranks = 0"]),
    "all latents dead": (["train", "topk", "--width", "8", "--tokens", "10000", "--dead", "1"], ["dead = 1.0"]),
    "more latents a token than there are": (
        ["train", "relu", "--width", "8", "--tokens", "10000", "--l0", "9000"], ["l0 = 9000", "8192"],
    ),
    "latents that no ranks share": (
        ["train", "kron", "--width", "8", "--tokens", "10000", "--device", "h100", "--ranks", "2", "--parallel", "latents"],
        ["--parallel latents", "kron"],
    ),
    "a stream of a model of unknown size": (
        ["train", "topk", "--width", "8", "--tokens", "10000", "--ring", "1GB"], ["--forward-parameters"],
    ),
    "a ring of no size": (
        ["train", "topk", "--width", "8", "--tokens", "10000", "--ring", "1 ton", "--forward-parameters", "1e6"], ["1 ton", "20GB"],
    ),
    "a run that is not there": (["features", "/nowhere"], ["/nowhere"]),
}  # fmt: skip


@pytest.mark.parametrize(("args", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(sae: Server, tmp_path: Path, args: list[str], says: list[str]):
    line = sae("plan", *args, cwd=tmp_path).complaint
    assert line.startswith("sae plan: ")
    assert all(part in line for part in says), line
    assert not list(tmp_path.iterdir())


def test_what_can_be_planned_is_said_when_it_is_left_out(sae: Server):
    for args, code in (((), 2), (("--help",), 0)):
        ended = sae("plan", *args)
        assert ended.code == code
        assert (
            "usage: sae plan {harvest,train ARCH,sweep,finetune,features,explain,scaling}"
            in ended.out + ended.err
        )
