"""A forecast: disk, memory and time by their parts, what limits the job, and whether it fits."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Forecast:
    """The predicted disk, memory and time of a job, in bytes and seconds, by part in the order in which they are shown."""

    what: str
    """The job in one line."""
    disk: dict[str, float]
    memory: dict[str, float]
    seconds: dict[str, float]
    resources: dict[str, str]
    """The limiting resource of each part of the time: `compute`, `memory bandwidth`, `disk` or `network`."""
    facts: dict[str, str] = field(default_factory=dict)
    """Further facts, such as the shuffle window."""
    notes: tuple[str, ...] = ()
    """Assumptions and caveats."""
    refusals: tuple[str, ...] = ()
    """Why the job does not fit here, and what would make it fit."""

    @property
    def limit(self) -> str:
        """The resource that most of the time is spent on, or the one there is too little of."""
        if self.refusals:
            return self.refusals[0].split(":")[0]
        by_resource: dict[str, float] = {}
        for part, seconds in self.seconds.items():
            by_resource[self.resources[part]] = by_resource.get(self.resources[part], 0.0) + seconds
        limit = max(by_resource, key=lambda name: by_resource[name])
        part = max((p for p in self.seconds if self.resources[p] == limit), key=lambda p: self.seconds[p])
        share = by_resource[limit] / (sum(self.seconds.values()) or 1.0)
        return f"{limit} ({share:.0%} of the time, most of it: {part})"


def total(parts: dict[str, float]) -> float:
    """Return the sum of all parts."""
    return sum(parts.values())


def duration(seconds: float) -> str:
    """Return a time as text, such as 10 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.1f} days"
