"""Helper for tests with other tools' packages: the table of differences that is printed at their end."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.sae.exchanged import apart

TABLE = pytest.StashKey[list[tuple[str, ...]]]()
HEAD = ("format", "architecture", "direction", "L0", "fire on one side only", "latents", "reconstruction")
Record = Callable[..., None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Compare two tools' latents and reconstructions of the same rows, and add a row to the table."""
    table = request.config.stash.setdefault(TABLE, [])

    def compare(
        name: tuple[str, str, str], latents: tuple[Tensor, Tensor], x_hat: tuple[Tensor, Tensor]
    ) -> None:
        one_sided = int(((latents[0] != 0) != (latents[1] != 0)).sum())
        l0, differ = (latents[1] != 0).double().sum(1).mean().item(), (apart(*latents), apart(*x_hat))
        table.append((*name, f"{l0:.1f}", str(one_sided), *(f"{value:.1e}" for value in differ)))
        assert 0 < l0 < latents[1].shape[1]
        assert one_sided == 0
        assert max(differ) < 1e-5

    with torch.no_grad():
        yield compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if table := config.stash.get(TABLE, []):
        terminalreporter.write_sep("=", "largest difference over the largest value")
        for row in (HEAD, ("---",) * len(HEAD), *table):
            terminalreporter.write_line(f"| {' | '.join(row)} |")
