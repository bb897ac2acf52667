"""What becomes of latents in training: deaths and revivals, counted as by hand."""

import torch

from sae.architectures import TopKConfig, build
from sae.config import TrainConfig
from sae.training.trainer import NEVER, History, Trainer


def lived(firings: list[str], dead_after: int = 20, tokens: int = 10) -> History:
    """The history of as many latents as there are strings: at step t it fires where character t is x."""
    history = History(len(firings), dead_after)
    for step in range(len(firings[0])):
        history.add(torch.tensor([row[step] == "x" for row in firings]), tokens, step + 1)
    return history


def test_a_latent_dies_when_silent_long_enough_and_is_revived_when_it_fires_again():
    history = lived(["xxxxxxx", ".......", "xxx....", "...x..x", "..x..x."])
    assert history.silent_tokens.tolist() == [0, 70, 40, 0, 10]
    assert history.dead.tolist() == [False, True, True, False, False]
    assert history.times_died.tolist() == [0, 1, 1, 2, 2]
    assert history.times_revived.tolist() == [0, 0, 0, 2, 2]
    assert history.first_death.tolist() == [NEVER, 2, 5, 2, 2]
    assert history.last_death.tolist() == [NEVER, 2, 5, 6, 5]
    assert history.totals() == {"died": 6, "revived": 4}


def test_what_is_dead_now_is_deaths_less_revivals():
    generator = torch.Generator().manual_seed(0)
    history = History(50, 7)
    for step in range(1, 40):
        history.add(torch.rand(50, generator=generator) < 0.2, 3, step)
        totals = history.totals()
        assert totals["died"] - totals["revived"] == int(history.dead.sum())
    assert totals["revived"] > 10


def test_half_a_history_restored_is_whole_again():
    first, second = ["x..", "...", "..x"], ["...", "xx.", "x.."]
    whole = lived([a + b for a, b in zip(first, second, strict=True)])
    half, rest = lived(first), History(3, 20)
    rest.restore(half.tensors())
    for step in range(3):
        rest.add(torch.tensor([row[step] == "x" for row in second]), 10, step + 4)
    assert all(torch.equal(tensor, rest.tensors()[name]) for name, tensor in whole.tensors().items())


def test_a_checkpoint_of_an_older_release_has_no_deaths_and_the_history_says_so():
    trainer = Trainer(
        build(TopKConfig(d_sae=6, k=2), 3),
        TrainConfig(steps=4, batch=4, lr=1e-2, warmup_steps=0, dead_after_tokens=12),
    )
    saved = trainer.tensors()
    older = {name: tensor for name, tensor in saved.items() if "death" not in name and "times" not in name}
    trainer.restore(0, older)
    assert not trainer.history.complete
    assert trainer.history.totals() == {}
    assert trainer.tensors().keys() == older.keys()
    trainer.restore(0, saved)
    assert trainer.history.complete
