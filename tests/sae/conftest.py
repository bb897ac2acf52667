"""Fixtures that several tests of the library share."""

from collections.abc import Iterator

import pytest

from tests import fake_judge
from tests.fake_judge import FakeJudge


@pytest.fixture
def fake() -> Iterator[FakeJudge]:
    with fake_judge.running() as running:
        yield running
