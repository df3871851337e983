"""Chinese captions."""

from __future__ import annotations


def is_chinese(text):
    return any("\u4e00" <= c <= "\u9fff" for c in text)


def phrase(scene, rng, detail):
    from capfilt.demo import art

    return "".join(art.vocabulary()[t.noun].zh for t in scene.things)
