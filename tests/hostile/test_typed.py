"""JSON against dataclasses: whatever it is, it is built as its types say or refused with a TypeError."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activations.disk.schema import build, check, fits
from tests.activations.toys import LAWS


@dataclass(frozen=True)
class Inner:
    """A part."""

    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    """A whole."""

    count: int
    share: float
    kind: Literal["a", "b"]
    flag: bool
    inner: Inner
    by_name: dict[str, float] = field(default_factory=dict)
    maybe: int | None = None
    anything: Any = None


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["name", "sizes", "x"]), SCALARS | st.lists(SCALARS, max_size=2))  # fmt: skip
GOOD = {"count": 3, "share": 1, "kind": "a", "flag": True, "inner": {"name": "x", "sizes": [1, 2]}}


def test_what_fits_is_built_with_tuples_for_lists():
    made = build(Outer, GOOD)
    assert made == Outer(3, 1, "a", True, Inner("x", (1, 2)))
    assert build(Outer, {**GOOD, "by_name": {"y": 0.5}, "maybe": 4}).by_name == {"y": 0.5}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": True}, "count = True"),
        ({"count": 1.0}, "count = 1.0"),
        ({"count": 2**63}, "count"),
        ({"share": "1"}, "share = '1'"),
        ({"share": float("nan")}, "share = nan"),
        ({"share": float("inf")}, "share = inf"),
        ({"kind": "c"}, "kind = 'c'"),
        ({"flag": 1}, "flag = 1"),
        ({"inner": {"name": 1}}, "inner"),
        ({"inner": None}, "inner"),
        ({"by_name": {"y": None}}, "by_name"),
        ({"maybe": "4"}, "maybe"),
        ({"more": 1}, "no field 'more'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_its_name(change: dict, says: str):
    with pytest.raises(TypeError, match=says):
        build(Outer, {**GOOD, **change})


def test_what_is_missing_is_named_and_what_is_more_can_be_let_be():
    with pytest.raises(TypeError, match="count is missing"):
        build(Outer, {name: value for name, value in GOOD.items() if name != "count"})
    check(Outer, {**GOOD, "more": 1})
    with pytest.raises(TypeError):
        check(Outer, [GOOD])


@LAWS
@given(JSON, st.sampled_from(["count", "share", "kind", "flag", "inner", "by_name", "maybe"]))
def test_anything_is_built_or_refused_and_never_changes_what_it_says(value: Any, where: str):
    content = {**GOOD, where: value}
    if fits(value, Outer.__annotations__[where]) and where != "inner":
        assert asdict(build(Outer, content))[where] == value
    elif where != "inner":
        with pytest.raises(TypeError, match=where) as caught:
            build(Outer, content)
        assert "\n" not in str(caught.value)
    elif fits(value, Inner) and isinstance(value, dict) and value.keys() <= {"name", "sizes"}:
        assert build(Outer, content).inner == Inner(value["name"], tuple(value.get("sizes", ())))
    else:
        with pytest.raises(TypeError):
            build(Outer, content)


@LAWS
@given(JSON)
def test_a_message_stays_short_whatever_it_quotes(value: Any):
    with pytest.raises(TypeError) as caught:
        build(Outer, {**GOOD, "kind": [value, "x" * 10_000]})
    assert len(str(caught.value)) < 500
