"""Whatever a file holds, its reader reads it or says one line of the project's own: in time, in little memory, and running nothing.

`python -m tests.hostile.fuzz --seconds 600` goes on where these stop."""

import time

import pytest

from tests.hostile.fuzz import Fuzzer
from tests.hostile.readers import READERS

QUICK, SLOW_CASES = 8, 4  # seeds a reader, and one whose cases take a good part of a second
LONG = 90.0  # seconds


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(fuzz: Fuzzer, name: str):
    seeds = range(SLOW_CASES if READERS[name].seconds > 5 else QUICK)
    found = fuzz(name, [*seeds])
    assert found["wrong"] == {}


@pytest.mark.slow
def test_no_reader_is_harmed_by_minutes_of_mutations(fuzz: Fuzzer):
    end, first, wrong, refused = time.monotonic() + LONG, 1000, {}, 0
    while time.monotonic() < end:
        for name in READERS:
            found = fuzz(name, [*range(first, first + 10)])
            refused += found["refused"]
            wrong |= {f"{name}, seed {seed}": said for seed, said in found["wrong"].items()}
        first += 10
    assert wrong == {}
    assert refused > len(READERS)
