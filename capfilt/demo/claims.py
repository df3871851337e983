"""Claims of a text about a picture, and their check against the scene that was drawn.

A language module reads a text into `Claims`; the functions here do not depend on the language.
"""

from __future__ import annotations

from dataclasses import dataclass

from capfilt.demo.scenes import INVERSE, Scene


@dataclass(frozen=True)
class Mention:
    """A noun in a text. `count` is None without a number or an article, `size` is None without a size word."""

    noun: str
    count: int | None
    plural: bool
    size: str | None


@dataclass(frozen=True)
class Claims:
    """The claims of a text. `relation` is (noun, relation, noun); `unclear` has unreadable words of place or colour."""

    things: tuple[Mention, ...]
    relation: tuple[str, str, str] | None
    background: str | None
    unclear: tuple[str, ...] = ()


def is_complete(claims: Claims, scene: Scene) -> bool:
    """Return whether a text names each noun of the scene with its count, no other noun, and the relation, if any."""
    if any(mention.plural and mention.count is None for mention in claims.things):
        return False  # "dogs" leaves the number open
    claimed = sorted((mention.noun, mention.count or 1) for mention in claims.things)
    drawn = sorted((thing.noun, thing.count) for thing in scene.things)
    return claimed == drawn and (claims.relation is None) == (scene.relation is None)


def is_correct(claims: Claims, scene: Scene) -> bool:
    """Return whether a text names an object and states nothing false."""
    things = {thing.noun: thing for thing in scene.things}
    for mention in claims.things:
        if mention.noun not in things:
            return False
        thing = things[mention.noun]
        if mention.count not in (None, thing.count) or (mention.plural and thing.count == 1):
            return False
        if mention.size not in (None, thing.size):
            return False
    if claims.background not in (None, scene.background) or claims.unclear or not claims.things:
        return False
    return claims.relation is None or _holds(claims.relation, scene)


def _holds(relation: tuple[str, str, str], scene: Scene) -> bool:
    if scene.relation is None:
        return False  # the places of the things are random, so no relation can be checked
    a, b = (thing.noun for thing in scene.things)
    return relation in ((a, scene.relation, b), (b, INVERSE[scene.relation], a))
