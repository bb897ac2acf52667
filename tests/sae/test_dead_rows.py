"""The rows on which latents are diagnosed are evenly chosen, the same each time, and include text unlike any document."""

from types import SimpleNamespace
from typing import Any

import torch

from sae.diagnosis.sample import DeadConfig, Rows, off_distribution, off_rows
from sae.runs.run import Run


def test_a_run_of_the_toy_world_is_the_same_each_time(world):
    run = Run(world / "runs/toy")
    rows = Rows(run.store, run.hook, DeadConfig(rows=200, batch=64))
    first, second = list(rows.text()), list(rows.text())
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))
    assert sum(len(piece.x) for piece in first) == rows.n_text
    assert sum(int(piece.held_out.sum()) for piece in first) == rows.n["held_out"] > 0
    assert (torch.cat([piece.columns for piece in first]) > 0).all()
    whole = Rows(run.store, run.hook, DeadConfig(rows=10**6))
    assert whole.n_text == sum(entry.rows for entry in run.store.shards)
    assert len(whole.special()) == whole.n["special"] > 0


class Listener:
    """A language model that records the tokens it reads and whose activations are the token ids."""

    def __init__(self, width: int, vocabulary: int):
        self.shown: list[torch.Tensor] = []
        self.width = width
        self.vocabulary = SimpleNamespace(rows=vocabulary, known=None)

    def capture(self, tokens: torch.Tensor, hooks: list[str]) -> dict[str, torch.Tensor]:
        self.shown.append(tokens)
        return {hooks[0]: tokens[:, :, None].expand(-1, -1, self.width).float()}


def test_off_distribution_text_keeps_the_first_token_and_is_random_or_shuffled(world):
    run = Run(world / "runs/toy")
    model: Any = Listener(16, vocabulary=258)
    cfg = DeadConfig(off_tokens=100)
    found = off_distribution(model, run.store, run.hook, cfg)
    context = run.store.context
    random, shuffled = model.shown
    originals = {
        tuple(row) for n in range(len(run.store.shards)) for row in run.store.read(n).tokens.tolist()
    }
    assert (
        len(random) == len(shuffled) == -(-100 // (context - 1)) == off_rows(run.store, cfg) // (context - 1)
    )
    assert {tuple(sorted(row)) for row in shuffled.tolist()} <= {tuple(sorted(row)) for row in originals}
    assert not {tuple(row) for row in shuffled.tolist()} & originals
    assert {row[0] for row in random.tolist()} | {row[0] for row in shuffled.tolist()} == {
        row[0] for row in originals
    }
    assert len(random[:, 1:].unique()) > 60, "drawn from the whole vocabulary"
    assert torch.equal(found["shuffled"][:, 0], shuffled[:, 1:].flatten().float())
    assert found["random"].shape == (off_rows(run.store, cfg), 16)
