"""What a text claims about a picture, and whether the claims are true: the judge of captions, whatever their language.

In: `Claims`, which a language's `parse` reads out of a text, and the scene that was drawn. Out: yes or no.
"""

from __future__ import annotations

from dataclasses import dataclass

from capfilt.demo.scenes import INVERSE, Scene


@dataclass(frozen=True)
class Mention:
    """A noun that a text names; `count` is None without number or article, `size` is None where none is said."""

    noun: str
    count: int | None
    plural: bool
    size: str | None


@dataclass(frozen=True)
class Claims:
    """`relation` is (noun, relation, noun); `unclear` holds words of place or background that made no sense."""

    things: tuple[Mention, ...]
    relation: tuple[str, str, str] | None
    background: str | None
    unclear: tuple[str, ...] = ()


def is_complete(claims: Claims, scene: Scene) -> bool:
    """Whether all is said that must be: every noun with its count and no other, and the relation if there is one."""
    if any(mention.plural and mention.count is None for mention in claims.things):
        return False  # "dogs" leaves the number open
    said = sorted((mention.noun, mention.count or 1) for mention in claims.things)
    there = sorted((thing.noun, thing.count) for thing in scene.things)
    return said == there and (claims.relation is None) == (scene.relation is None)


def is_correct(claims: Claims, scene: Scene) -> bool:
    """Whether nothing that is said is false; a text that names no object is not true of any picture."""
    things = {thing.noun: thing for thing in scene.things}
    for mention in claims.things:
        if mention.noun not in things:
            return False
        there = things[mention.noun]
        if mention.count not in (None, there.count) or (mention.plural and there.count == 1):
            return False
        if mention.size not in (None, there.size):
            return False
    if claims.background not in (None, scene.background) or claims.unclear or not claims.things:
        return False
    return claims.relation is None or _holds(claims.relation, scene)


def _holds(relation: tuple[str, str, str], scene: Scene) -> bool:
    if scene.relation is None:
        return False  # no relation was drawn on purpose, so none can be checked
    a, b = (thing.noun for thing in scene.things)
    return relation in ((a, scene.relation, b), (b, INVERSE[scene.relation], a))
