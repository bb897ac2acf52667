"""The compiled loops give the same bits as plain torch on any number of threads, and values that are not finite are refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.errors import RunError
from sae.features import collect as collecting
from sae.features import firings, numba_pass
from sae.features.cofiring import cofiring
from sae.features.collect import FeaturesConfig, collect
from sae.features.examples import Selection, gather, traces, wanted_pairs
from sae.features.firings import LOWEST_OCTAVE, Firings, Statistics, by_latent
from sae.runs.run import Run

CONTEXT, F, WINDOWS = 8, 12, 24


@contextmanager
def looping(yes: bool, threads: int = 1) -> Iterator[None]:
    """Let the compiled loops do all work within the block, or none."""
    kept, before = numba_pass.WORTHWHILE, torch.get_num_threads()
    numba_pass.WORTHWHILE = 0 if yes else 2**62
    torch.set_num_threads(threads)
    yield
    numba_pass.WORTHWHILE = kept
    torch.set_num_threads(before)


def shards(seed: int, density: float) -> list[Firings]:
    """Return two shards whose values have ties, both signs, and lie at the histogram's edges and beyond both its ends."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for first_window, windows in ((0, WINDOWS), (WINDOWS, 5)):
        fires = torch.rand(windows * CONTEXT, F, generator=g) < density * torch.rand(F, generator=g)
        rows, latents = fires.nonzero(as_tuple=True)
        octaves = torch.randint(4 * LOWEST_OCTAVE - 8, 30, rows.shape, generator=g) / 4
        signs = torch.randint(0, 2, rows.shape, generator=g) * 2 - 1
        found.append(by_latent(rows, latents, signs * 2**octaves, F, first_window * CONTEXT))
    return found


def everything(parts: list[Firings]) -> list[torch.Tensor]:
    """Return everything that the pass computes from these shards."""
    statistics, selection = Statistics(F, unit=0.7), Selection(range(5, 5 + F), 2, 3)
    for part in parts:
        statistics.add(part)
        selection.add(part, CONTEXT)
    chosen = selection.windows()
    wanted = wanted_pairs(chosen)
    seen = traces(wanted, [gather(wanted, part, CONTEXT) for part in parts])
    n_rows = (WINDOWS + 5) * CONTEXT
    together = cofiring(lambda: iter(parts), range(F), statistics.fired, n_rows, 4, 2, 4 * F * 5)
    return [*statistics.state().values(), *chosen.values(), *seen, *together]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.sampled_from([1, 2, 3]))
def test_the_loops_give_to_the_bit_what_plain_torch_gives(seed, density, threads):
    parts = shards(seed, density)
    with looping(False):
        plain = everything(parts)
    with looping(True, threads):
        fast = everything(parts)
    for one, other in zip(plain, fast, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("loops", [False, True], ids=["torch", "loops"])
def test_some_latents_at_a_time_give_what_all_at_once_give(loops):
    parts = shards(1, 0.3)
    with looping(loops):
        whole = Selection(range(F), 2, 3)
        pieces = [Selection(range(start, stop), 2, 3) for start, stop in ((0, 5), (5, 6), (6, F))]
        fired = torch.stack([part.starts.diff() for part in parts]).sum(0)
        for part in parts:
            whole.add(part, CONTEXT)
            for piece in pieces:
                some = piece.latents
                begin, end = part.starts[some.start], part.starts[some.stop]
                own = part.starts[some.start : some.stop + 1] - begin
                piece.add(Firings(own, part.rows[begin:end], part.values[begin:end], part.first_row), CONTEXT)
        together = [cofiring(lambda: iter(parts), s.latents, fired, 232, 3, 2) for s in pieces]
        at_once = cofiring(lambda: iter(parts), range(F), fired, 232, 3, 2)
    for kind, windows in whole.windows().items():
        assert torch.equal(windows, torch.cat([piece.windows()[kind] for piece in pieces]))
    for column, split in zip(at_once, zip(*together, strict=True), strict=True):
        assert torch.equal(column, torch.cat(split))


def test_firings_are_sorted_by_latent_then_row_and_kept_so(tmp_path):
    part = shards(2, 0.3)[1]
    firings.write(tmp_path / "f", part, 40)
    assert firings.read_counts(tmp_path / "f")[0] == 40
    assert torch.equal(firings.read_counts(tmp_path / "f")[1], part.starts.diff())
    some = firings.read(tmp_path / "f", range(3, 7), part.first_row)
    begin, end = part.starts[3], part.starts[7]
    assert torch.equal(some.rows, part.rows[begin:end])
    assert torch.equal(some.values, part.values[begin:end])
    assert torch.equal(some.starts, part.starts[3:8] - begin)
    for latent in range(F):
        own = part.rows[part.starts[latent] : part.starts[latent + 1]]
        assert (own.diff() > 0).all()


def test_values_that_are_no_numbers_are_refused_in_one_line(world, tmp_path, monkeypatch):
    run = Run(world / "runs/toy")
    sae, real = run.sae(), type(run.sae()).encode

    def broken(self, x):
        code = real(self, x)
        return code._replace(values=code.values.masked_fill(torch.arange(len(code.values)) == 3, torch.inf))

    monkeypatch.setattr(type(sae), "encode", broken)
    with pytest.raises(RunError, match="gives NaN or infinity on shard 0 .*; sae store verify"):
        collect(sae, run.store, run.hook, FeaturesConfig(batch=64), tmp_path, {})
    assert not [*tmp_path.glob(f"{collecting.shard_name(0)}*")]
