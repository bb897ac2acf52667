"""A forecast: disk, memory and time by their parts, what limits, and whether it fits."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Forecast:
    """What a job would take. Bytes and seconds, by part, in the order they are shown."""

    what: str
    """The job in a line."""
    disk: dict[str, float]
    memory: dict[str, float]
    seconds: dict[str, float]
    resources: dict[str, str]
    """What each part of the time waits for: `compute`, `memory bandwidth`, `disk`."""
    facts: dict[str, str] = field(default_factory=dict)
    """More to know, such as the shuffle window."""
    notes: tuple[str, ...] = ()
    """What was assumed, and what to beware of."""
    refusals: tuple[str, ...] = ()
    """Why it cannot be done here, and what would make it fit."""

    @property
    def limit(self) -> str:
        """What most of the time goes to, or what there is too little of."""
        if self.refusals:
            return self.refusals[0].split(":")[0]
        by: dict[str, float] = {}
        for part, seconds in self.seconds.items():
            by[self.resources[part]] = by.get(self.resources[part], 0.0) + seconds
        most = max(by, key=lambda name: by[name])
        part = max((p for p in self.seconds if self.resources[p] == most), key=lambda p: self.seconds[p])
        share = by[most] / (sum(self.seconds.values()) or 1.0)
        return f"{most} ({share:.0%} of the time, most of it: {part})"


def total(parts: dict[str, float]) -> float:
    """All parts together."""
    return sum(parts.values())


def size(n: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:,.0f} {unit}" if unit in ("B", "kB") else f"{n:,.1f} {unit}"
        n /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.1f} days"
