"""Search well-known SAEs of the hub by words, without a network.

The data are catalogue.json, which names its sources. One release in it stands for many SAEs: `path` and `hook` are patterns,
and each row gives a width and the layers and values of L0 that exist with it."""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import product
from typing import NamedTuple, NotRequired, TypedDict

from activations.errors import HubError
from sae.hub import HubName

WIDTHS = {"1k": 1024, "4k": 4096, "16k": 16384, "24k": 24576, "32k": 32768, "65k": 65536, "80k": 81920, "131k": 131072,
          "262k": 262144, "524k": 524288, "1m": 1048576}  # fmt: skip
SITE_WORDS = {
    "residual": {"residual", "resid", "res", "r"},
    "mlp": {"mlp", "m"},
    "attention": {"attention", "attn", "att", "a"},
    "embedding": {"embedding", "embed"},
    "transcoder": {"transcoder", "transcoders"},
    None: set(),
}
NEAREST = 5  # entries named when nothing matches


class Release(TypedDict):
    """An entry of catalogue.json: SAEs that were published together."""

    repository: str
    path: str
    family: str
    model: str
    format: NotRequired[str]
    hook: NotRequired[str]
    site: NotRequired[str]
    method: NotRequired[str]
    unsupported: NotRequired[str]
    trainers: NotRequired[list[int]]
    rows: list[tuple[str | None, str, list[int | str | None]]]
    """Width, ranges of layers, values of L0."""


class Entry(NamedTuple):
    """One SAE, or a repository of SAEs whose layers the catalogue does not list."""

    name: str
    """Its name for `sae import`."""
    family: str
    format: str | None
    """Name of its format; None where it cannot be read."""
    model: str
    """The language model, as `--model` takes it."""
    hook: str | None
    layer: int | None
    site: str | None
    width: int | None
    l0: int | str | None
    """Mean number of latents that fire, or the release's own word for it."""
    method: str | None
    unsupported: str | None
    """Why it cannot be read; None where it can."""


@cache
def entries() -> tuple[Entry, ...]:
    """Return every SAE in the catalogue."""
    text = (files("sae.hub") / "catalogue.json").read_text(encoding="utf-8")
    releases: list[Release] = json.loads(text)["releases"]  # our own file
    return tuple(entry for release in releases for entry in _expanded(release))


def _expanded(release: Release) -> Iterator[Entry]:
    for width, layers, l0s in release["rows"]:
        for layer, l0, trainer in product(_numbers(layers), l0s, release.get("trainers", [None])):
            filled = {"layer": layer, "width": width, "l0": l0, "trainer": trainer}
            hook = release.get("hook")
            yield Entry(
                str(HubName(release["repository"], release["path"].format(**filled))),
                release["family"],
                release.get("format"),
                release["model"],
                hook.format(**filled) if hook and layer is not None else None,
                layer,
                release.get("site"),
                None if width is None else WIDTHS.get(width, int(width) if width.isdigit() else None),
                l0,
                release.get("method"),
                release.get("unsupported"),
            )


def _numbers(ranges: str) -> list[int | None]:
    """Return the numbers in a list of ranges such as `0-3,7`, or [None] for an empty text."""
    if not ranges:
        return [None]
    ends = [part.partition("-") for part in ranges.split(",")]
    return [n for first, _, last in ends for n in range(int(first), int(last or first) + 1)]


class Query(NamedTuple):
    """The properties and words of a search; None for a property that is not asked for."""

    layer: int | None
    width: int | None
    l0: str | None
    words: tuple[str, ...]


def parse(text: str) -> Query:
    """Parse a search: `layer 20` or `l20`, `16k` or `16384`, `l0 71`, and words of model, site, method or release."""
    rest = f" {text.lower()} "
    values: dict[str, str] = {}
    for key, pattern in (("l0", r"\sl0[ _=]?(\w+)"), ("layer", r"\s(?:layer[ _=]?|l)(\d+)(?=\s)")):
        if match := re.search(pattern, rest):
            values[key] = match[1]
            rest = rest[: match.start()] + " " + rest[match.end() :]
    width = None
    words = re.findall(r"[\w.]+", rest)
    for word in words:
        if word in WIDTHS or (word.isdigit() and int(word) in {*WIDTHS.values()}):
            width = WIDTHS.get(word) or int(word)
    width_words = {"width", str(width), *(name for name, n in WIDTHS.items() if n == width)}
    other_words = tuple(word for word in words if word not in width_words)
    layer = values.get("layer")
    return Query(int(layer) if layer else None, width, values.get("l0"), other_words)


def search(text: str) -> list[Entry]:
    """Return the SAEs that match everything a search asks for. Matches in the model's name rank highest, and SAEs that
    cannot be read rank last.

    Raises HubError when nothing matches, naming the nearest entries."""
    query = parse(text)
    wanted = len(query.words) + sum(value is not None for value in query[:3])
    scored = [(*_score(query, entry), entry) for entry in entries()]
    full = [match for match in scored if match[0] == wanted]
    if full:
        return [
            entry
            for *_, entry in sorted(full, key=lambda match: (match[2].unsupported is not None, -match[1]))
        ]
    near = sorted(scored, key=lambda match: (-match[0], match[2].unsupported is not None, -match[1]))[
        :NEAREST
    ]
    listed = ", ".join(_named(entry) for *_, entry in near)
    raise HubError(f"the catalogue has nothing with all of {text!r}; nearest: {listed}")


def _named(entry: Entry) -> str:
    return f"{entry.name}{f' (layer {entry.layer})' if entry.layer is not None else ''}"


def _score(query: Query, entry: Entry) -> tuple[int, int]:
    """Return how many properties and words of a query an entry matches, and how many words match the model's name."""
    model = {
        *re.findall(r"[a-z]+|[\d.]+[a-z]?\b|[\d.]+", entry.model.lower()),
        *re.split(r"[\W_]+", entry.model.lower()),
    }
    other = {*re.split(r"[\W_]+", f"{entry.name} {entry.family} {entry.format} {entry.method}".lower())}
    other |= SITE_WORDS[entry.site] | {str(entry.site), str(entry.method), "sae"}
    squeezed = re.sub(r"[\W_]+", "", entry.model.lower())  # "gemma2" must find gemma-2-2b
    in_model = [word for word in query.words if word in model or (len(word) > 3 and word in squeezed)]
    elsewhere = [word for word in query.words if word not in in_model and word in other]
    facts = [
        query.layer is not None and query.layer == entry.layer,
        query.width is not None and query.width == entry.width,
        query.l0 is not None and query.l0 == str(entry.l0),
    ]
    return len(in_model) + len(elsewhere) + sum(facts), len(in_model)
