"""The firings of a shard sorted by latent: the files that hold them in the pass over a store, and every latent's statistics over them."""

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from scipy import sparse
from torch import Tensor

from activations.disk import files
from sae.features import numba_pass

FORMAT = "sae-firings-2"  # of the files of firings
CONTENT = ("starts", "rows", "values", "n_rows")
BINS = 64  # of a histogram, for each sign
BINS_PER_OCTAVE = 4
LOWEST_OCTAVE = -12  # the first bin begins at unit * 2^-12
QUARTERS = tuple(2 ** (quarter / BINS_PER_OCTAVE - 1) for quarter in range(1, BINS_PER_OCTAVE))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Firings(NamedTuple):
    """Firings (row, latent, value != 0) of F latents on whole windows, sorted by latent, then by row."""

    starts: Int[Tensor, "F+1"]
    """Latent f's firings are starts[f] to starts[f + 1] - 1."""
    rows: Int[Tensor, "nnz"]
    """int32, relative to `first_row`."""
    values: Float[Tensor, "nnz"]
    first_row: int = 0
    """Number in the whole store of row 0."""

    def latents(self) -> Int[Tensor, "nnz"]:
        """Return the latent of each firing."""
        counts = self.starts.diff()
        return torch.arange(len(counts)).repeat_interleave(counts)


def by_latent(
    rows: Int[Tensor, "nnz"],
    latents: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    n_latents: int,
    first_row: int = 0,
) -> Firings:
    """Sort firings whose rows rise, such as a code's, by latent, in O(nnz): rows of a sparse matrix become columns."""
    ends = torch.bincount(rows.long() + 1).cumsum(0) if len(rows) else torch.zeros(1, dtype=torch.int64)
    entries = (values.float().numpy(), latents.int().numpy(), ends.numpy())
    by_row: Any = sparse.csr_matrix(entries, shape=(len(ends) - 1, n_latents))
    by_column = by_row.tocsc()
    starts, sorted_rows = (torch.from_numpy(part) for part in (by_column.indptr, by_column.indices))
    return Firings(starts.long(), sorted_rows.int(), torch.from_numpy(by_column.data), first_row)


def write(path: Path, firings: Firings, n_rows: int) -> None:
    """Write firings, and the number of rows that were encoded, to one file: 8 bytes a firing and 8 a latent."""
    tensors = {"starts": firings.starts, "rows": firings.rows, "values": firings.values}
    tensors["n_rows"] = torch.tensor(n_rows)
    files.write_tensors(path, {**tensors, "crc32": _crc32(tensors)}, FORMAT)


def is_whole(path: Path) -> bool:
    """Return whether a file exists and has all the bytes that were written."""
    if not path.exists():
        return False
    try:
        tensors = load_file(path)
        return bool(_crc32(tensors) == tensors["crc32"])
    except (SafetensorError, KeyError, ValueError):
        return False


def _crc32(tensors: Mapping[str, Tensor]) -> Tensor:
    checksum = 0
    for name in CONTENT:
        array = tensors[name].numpy()
        checksum = zlib.crc32(array.data, zlib.crc32(f"{array.dtype} {array.shape}".encode(), checksum))
    return torch.tensor(checksum)


def read(path: Path, latents: range, first_row: int) -> Firings:
    """Read the firings of a range of latents from a file; they become latents 0, 1, … of the result."""
    with safe_open(path, framework="pt") as file:
        starts = file.get_slice("starts")[latents.start : latents.stop + 1]
        begin, end = int(starts[0]), int(starts[-1])
        rows, values = (file.get_slice(name)[begin:end] for name in ("rows", "values"))
    return Firings(starts - begin, rows, values, first_row)


def read_counts(path: Path) -> tuple[int, Int[Tensor, "F"]]:
    """Read from a file the number of rows that were encoded, and the number of firings of each latent."""
    with safe_open(path, framework="pt") as file:
        return int(file.get_tensor("n_rows")), file.get_tensor("starts").diff()


class Statistics:
    """Accumulates statistics of F latents from their firings, shard by shard in any order.

    Counts, extremes, histograms and first and last rows are exact; sums are float64. The state takes 1.2 kB a latent
    however many tokens are read. `unit` sets the bins of the histograms: 64 for each sign, four to an octave of |value|,
    from unit / 4096 to 16 unit. Values beyond fall into the outermost bins."""

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
        """Return the state's tensors by name, a row for each latent, so that the states of two sets of latents can be concatenated."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def add(self, firings: Firings) -> None:
        """Add firings of these latents, whose values must be finite."""
        state = list(self.state().values())
        if numba_pass.worthwhile(len(firings.values)):
            quarters = np.array(QUARTERS)
            numba_pass.by_latents(numba_pass.statistics, *firings, self.unit, quarters, LOWEST_OCTAVE, *state)
        else:
            _add(firings, self.unit, *state)

    def edges(self) -> Float[Tensor, "bins+1"]:
        """Return the edges of the histograms' bins, as |value|."""
        octaves = LOWEST_OCTAVE + torch.arange(BINS + 1, dtype=torch.float64) / BINS_PER_OCTAVE
        return self.unit * 2**octaves

    def table(self, n_rows: int) -> dict[str, Tensor]:
        """Return columns [F] for a pass over n_rows rows; NaN, or -1 for row numbers, where a latent never fired.

        density is firings / n_rows. mean, std, skew and kurtosis (3 for the normal distribution) are of the nonzero values;
        std divides by the count. skew and kurtosis are NaN also where the values are equal, or differ by less than float64 can tell
        from the sums of their powers. qXX are quantiles of those values from the histogram: within one bin (19 %) of the true
        ones, and always between min and max."""
        count = self.fired.double()
        one, two, three, four = self.powers.T / count  # raw moments; 0 / 0 is NaN
        variance = (two - one**2).clamp_min(0)  # rounding can make it negative where all values are equal
        third = three - 3 * one * two + 2 * one**3
        fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
        nan = torch.where(self.fired > 0, 0.0, math.nan)
        # sums of fourth powers are right to 1e-16, and the variance's square is what divides: 1e-14 leaves two digits and more
        spread = torch.where((self.fired > 1) & (variance > 1e-7 * two), variance, math.nan)
        columns = {
            "fired": self.fired,
            "density": count / n_rows,
            "positive_share": self.positive / count,
            "mean": one,
            "std": variance.sqrt(),
            "skew": third / spread**1.5,
            "kurtosis": fourth / spread**2,
            "max": self.max + nan,
            "min": self.min + nan,
        }
        for q in QUANTILES:
            columns[f"q{round(100 * q):02d}"] = self.quantile(q)
        columns["first_row"] = torch.where(self.fired > 0, self.first, -1)
        columns["last_row"] = self.last
        return columns

    def quantile(self, q: float) -> Float[Tensor, "F"]:
        """Return the q-quantile [F] of each latent's nonzero values, interpolated within a bin; NaN where it never fired."""
        edges = self.edges()
        lower = torch.cat(
            [-edges[1:].flip(0), edges[:-1]]
        )  # of all bins, from most negative to most positive
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
    """Do in plain torch what `numba_pass.statistics` does, with the same bits."""
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
    # Bins are found from the mantissa, in [1/2, 1), and the exponent: exact, where a logarithm rounds.
    mantissa, exponent = torch.frexp(exact.abs() / unit)
    bins = BINS_PER_OCTAVE * (exponent.long() - 1 - LOWEST_OCTAVE)
    for quarter in QUARTERS:
        bins += mantissa >= quarter
    place = (latents * 2 + (values > 0)) * BINS + bins.clamp(0, BINS - 1)
    histogram += torch.bincount(place, minlength=n * 2 * BINS).view_as(histogram)
