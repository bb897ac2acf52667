"""Present families of latents: for the command line how many there are beside chance and the largest of them, for a page one's kin."""

from collections.abc import Iterator, Sequence
from typing import Any

from sae.report import render
from sae.report.feature import Describe
from sae.report.numbers import count, fixed, number, percent

HEADS = ("", "these latents", "shuffled")
MEANING = (
    "Covered: share of the child's firings on which its parent fires too; chance: share of all tokens on which the parent fires. Needed: what the "
    "child's tokens lose in reconstruction without the parent, beyond chance, as a share of what they lose without the child."
)
FEW = 8  # children that a line names, and kin of a kind that a page lists


def _stages(counts: Any) -> list[tuple[str, float]]:
    return [
        ("pairs with enough coverage", counts.covered),
        ("of these beyond chance", counts.beyond_chance),
        ("of these needed for the reconstruction", counts.reconstructed),
        ("latents with a parent", counts.edges),
    ]


def lines(record: Any) -> Iterator[tuple[str, str, str]]:
    """Yield a row of HEADS for each condition that pairs had to meet; for shuffled firings the mean over the shuffles."""
    by_chance = [_stages(counts) for counts in record.shuffled]
    for place, (title, found) in enumerate(_stages(record.found)):
        mean = sum(stages[place][1] for stages in by_chance) / len(by_chance)
        yield title, count(int(found)), number(mean)


def basis(record: Any) -> str:
    """Return what the families are based on, in words."""
    return (
        f"{count(record.rows)} rows of {record.config['split']} text; {count(record.children)} latents fire in enough windows to have "
        f"a parent, {count(record.pairs)} pairs were looked at"
    )


def conclusion(record: Any) -> str:
    """Return what can be said of the whole, in a sentence."""
    edges = record.found.edges
    by_chance = sum(counts.edges for counts in record.shuffled) / len(record.shuffled)
    if not edges:
        return "No latent has a parent."
    have = "latent has" if edges == 1 else "latents have"
    what = f"{count(edges)} {have} a parent; among shuffled firings {number(by_chance)} of them."
    return what if edges > 2 * by_chance else f"{what} These families are not beyond chance."


def caution(record: Any, alive: int) -> str:
    """Return a warning where the text is so short that most of the latents that fire at all, `alive`, could not be asked; else ''."""
    if 2 * record.children >= alive:
        return ""
    return (
        f"{count(alive - record.children)} of {count(alive)} latents that fire do so in too few windows of this text to have a parent: "
        f"read more of it (--rows), or training text too (--split all)"
    )


def tree(families: Any, root: int, describe: Describe, most: int) -> list[str]:
    """Return a family as lines, each generation indented under its parent; at most `most` children of each latent are named."""
    told: list[str] = []
    waiting: list[tuple[int, int | None, int]] = [
        (0, root, 0)
    ]  # depth, a latent or None for those left out, their number
    while waiting:
        depth, latent, left_out = waiting.pop()
        if latent is None:
            told.append(f"{'   ' * depth}and {count(left_out)} more")
            continue
        link = families.link(latent)
        why = f"  ({percent(link.coverage)}, chance {percent(link.chance)})" if depth and link else ""
        told.append(f"{'   ' * depth}{latent}  {name(latent, describe)}{why}")
        children = families.children(latent)
        if len(children) > most:
            waiting.append((depth + 1, None, len(children) - most))
        waiting += [(depth + 1, child, 0) for child in children[:most][::-1]]
    return told


def name(latent: int, describe: Describe) -> str:
    """Return a latent's label, or the tokens that it fires most on, as one line of text."""
    label, tokens = describe(latent)
    return " ".join(label.split()) or " · ".join(
        render.visible(token) for token in list(dict.fromkeys(tokens))[:4]
    )


def kin(family: Any, describe: Describe, run: str | None) -> str:
    """Return a latent's parent, siblings and children (`sae.features.families.Family`) as a table with links to their pages.

    Siblings and children beyond FEW are counted; no links if `run` is None. Empty for a latent without kin."""
    groups = [("parent", [(family.parent.parent, family.parent)] if family.parent else [])]
    groups += [
        (kind, [(link.child, link) for link in links])
        for kind, links in (("sibling", family.siblings), ("child", family.children))
    ]
    if not any(links for _, links in groups):
        return ""
    body = "".join(_group(kind, links, describe, run) for kind, links in groups)
    head = (
        '<tr><th scope="col">kin</th><th scope="col">feature</th>'
        '<th scope="col" class="n">covered</th><th scope="col" class="n">chance</th><th scope="col" class="n">needed</th>'
        '<th scope="col">fires most on</th></tr>'
    )
    table = render.wide(f'<table class="sae neighbours family">{head}{body}</table>')
    return f'{table}<p class="sae"><small class="dim">{render.escaped(MEANING)}</small></p>'


def _group(kind: str, links: Sequence[tuple[int, Any]], describe: Describe, run: str | None) -> str:
    rows = []
    for latent, link in links[:FEW]:
        label, tokens = describe(latent)
        rows.append(
            f'<tr><th scope="row">{kind}</th><td>{render.feature_anchor(run, latent)}</td>'
            f'<td class="n" title="at least {percent(link.coverage_low)}, with a confidence of 95 %">{percent(link.coverage)}</td>'
            f'<td class="n">{percent(link.chance)}</td><td class="n">{fixed(link.share, 2)}</td>'
            f'<td class="token">{render.named(label)}{render.chips(tokens)}</td></tr>'
        )
    if len(links) > FEW:
        plural = {"sibling": "siblings", "child": "children"}[kind]
        rows.append(f'<tr><td colspan="6" class="dim">and {len(links) - FEW:,} more {plural}</td></tr>')
    return "".join(rows)


def alone(record: Any, fired: int) -> str:
    """Return why a latent has no kin, in a sentence; `fired` is how often it fires in the text that was read."""
    return (
        f"It has no parent and no children. In the {count(record.rows)} rows that were looked at it fires {count(fired)} times; "
        f"{count(record.found.edges)} of this run's latents have a parent."
    )
