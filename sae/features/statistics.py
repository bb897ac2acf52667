"""Sums per latent over a stream of firings: density, moments, extremes, histograms, first and last firing."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.features import numba_pass
from sae.features.firings import Firings

BINS = 64  # a side
BINS_PER_OCTAVE = 4
LOWEST_OCTAVE = -12  # of the first bin's lower edge, in octaves of the unit
QUARTERS = tuple(2 ** (quarter / BINS_PER_OCTAVE - 1) for quarter in range(1, BINS_PER_OCTAVE))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Statistics:
    """Adds up firings of F latents, in any order of shards and any division into them.

    Counts, extremes, histograms and first/last firings are exact; sums are float64. State: 1.2 kB a latent,
    however many tokens pass. `unit` sets the histograms' bins: 64 a side, four to an octave of |value|, from
    unit / 4096 to 16 unit; what lies beyond falls into the outermost bins."""

    def __init__(self, n_latents: int, unit: float):
        self.unit = unit
        self.fired = torch.zeros(n_latents, dtype=torch.int64)
        self.positive = torch.zeros(n_latents, dtype=torch.int64)
        self.powers = torch.zeros(n_latents, 4, dtype=torch.float64)  # sums of v, v^2, v^3, v^4
        self.max = torch.full((n_latents,), -math.inf)
        self.min = torch.full((n_latents,), math.inf)
        self.first = torch.full((n_latents,), torch.iinfo(torch.int64).max)
        self.last = torch.full((n_latents,), -1, dtype=torch.int64)
        # [:, 0] negative, [:, 1] positive
        self.histogram = torch.zeros(n_latents, 2, BINS, dtype=torch.int64)

    def state(self) -> dict[str, Tensor]:
        """All that is counted, a row a latent: that of some latents and that of others, one behind the other, is
        that of them all."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def add(self, firings: Firings) -> None:
        """Take in finite firings of these latents."""
        state = list(self.state().values())
        if loops := numba_pass.loops(len(firings.values)):
            quarters = np.array(QUARTERS)
            numba_pass.by_latents(loops.statistics, *firings, self.unit, quarters, LOWEST_OCTAVE, *state)
        else:
            _add(firings, self.unit, *state)

    def edges(self) -> Float[Tensor, "bins+1"]:
        """Edges of the histograms' bins, as |value|."""
        octaves = LOWEST_OCTAVE + torch.arange(BINS + 1, dtype=torch.float64) / BINS_PER_OCTAVE
        return self.unit * 2**octaves

    def table(self, n_rows: int) -> dict[str, Tensor]:
        """Columns [F], for a pass over n_rows rows; nan (or -1, for rows) where a latent never fired.

        density: firings / n_rows. mean, std, skew, kurtosis (of the normal distribution: 3): of the values it
        fires with, zeros left out; std divides by the count. qXX: quantiles of those values, from the
        histogram, so true to within one bin (19 %) and always between min and max."""
        count = self.fired.double()
        one, two, three, four = self.powers.T / count  # 0 / 0 is nan
        variance = (two - one**2).clamp_min(0)
        third = three - 3 * one * two + 2 * one**3
        fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
        nan = torch.where(self.fired > 0, 0.0, math.nan)
        columns = {
            "fired": self.fired,
            "density": count / n_rows,
            "positive_share": self.positive / count,
            "mean": one,
            "std": variance.sqrt(),
            "skew": third / variance**1.5,
            "kurtosis": fourth / variance**2,
            "max": self.max + nan,
            "min": self.min + nan,
        }
        for q in QUANTILES:
            columns[f"q{round(100 * q):02d}"] = self.quantile(q)
        columns["first_row"] = torch.where(self.fired > 0, self.first, -1)
        columns["last_row"] = self.last
        return columns

    def quantile(self, q: float) -> Float[Tensor, "F"]:
        """The q-quantile [F] of each latent's values, interpolated within a bin; nan where it never fired."""
        edges = self.edges()
        lower = torch.cat([-edges[1:].flip(0), edges[:-1]])  # all bins from most negative to most positive
        upper = torch.cat([-edges[:-1].flip(0), edges[1:]])
        counts = torch.cat([self.histogram[:, 0].flip(1), self.histogram[:, 1]], 1).double()
        running = counts.cumsum(1)
        target = q * running[:, -1:]
        bin_ = torch.searchsorted(running, target).clamp_max(2 * BINS - 1)
        before = running.gather(1, bin_) - counts.gather(1, bin_)
        inside = ((target - before) / counts.gather(1, bin_)).clamp(0, 1)
        value = lower[bin_] + inside * (upper[bin_] - lower[bin_])
        value = value[:, 0].clamp(self.min.double(), self.max.double())
        return torch.where(self.fired > 0, value, math.nan)


def _add(
    firings: Firings,
    unit: float,
    fired: Tensor,
    positive: Tensor,
    powers: Tensor,
    high: Tensor,
    low: Tensor,
    first: Tensor,
    last: Tensor,
    histogram: Tensor,
) -> None:
    """`Statistics.add` in plain torch."""
    n, latents, values = len(fired), firings.latents(), firings.values
    rows = firings.rows.long() + firings.first_row
    fired += firings.starts.diff()
    positive += torch.bincount(latents[values > 0], minlength=n)
    exact = values.double()
    power = exact
    for sums in powers.T:
        sums.index_add_(0, latents, power)
        power = power * exact
    high.scatter_reduce_(0, latents, values, "amax")
    low.scatter_reduce_(0, latents, values, "amin")
    first.scatter_reduce_(0, latents, rows, "amin")
    last.scatter_reduce_(0, latents, rows, "amax")
    # mantissa in [1/2, 1): exact, where a logarithm is not
    mantissa, exponent = torch.frexp(exact.abs() / unit)
    bins = BINS_PER_OCTAVE * (exponent.long() - 1 - LOWEST_OCTAVE)
    for quarter in QUARTERS:
        bins += mantissa >= quarter
    place = (latents * 2 + (values > 0)) * BINS + bins.clamp(0, BINS - 1)
    histogram += torch.bincount(place, minlength=n * 2 * BINS).view_as(histogram)
