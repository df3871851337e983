"""Styles of web texts: titles, keyword lists, shop lines and alt texts, in English and Chinese.

In: a scene and a random generator. Out: a text in one style. It names all objects and states nothing false about the
scene, but leaves out much: mostly the relation and often the count.
"""

from __future__ import annotations

from random import Random

from capfilt.demo import art, chinese, english
from capfilt.demo.scenes import Scene, Thing

PRODUCTS = ("sticker", "decal", "poster", "art print", "iron-on patch", "wall art", "greeting card", "stamp")
FORMAT_WORDS = (
    "clipart",
    "vector",
    "icon",
    "illustration",
    "png",
    "stock image",
    "cartoon",
    "graphic",
    "flat design",
    "svg",
)
MARKETING = (
    "free shipping", "best price guaranteed", "shop now and save", "new arrivals", "sale ends soon", "limited offer",
    "order today", "click to enlarge", "add to cart", "in stock", "premium quality", "customer favourite",
    "official store", "buy now", "read more", "money back guarantee", "download now", "exclusive deal",
    "sign up for our newsletter", "up to 50% off",
)  # fmt: skip
ZH_PRODUCTS = ("贴纸", "海报", "墙贴", "贺卡", "印章")
ZH_FORMAT_WORDS = ("剪贴素材", "矢量图", "图标", "插图", "图片", "卡通", "免抠素材", "平面设计")
ZH_MARKETING = (
    "包邮", "限时特价", "新品上市", "立即购买", "加入购物袋", "全场五折",
    "正品保证", "点击放大", "现货速发", "查看更多", "好评如潮", "假一赔十",
)  # fmt: skip


def title(scene: Scene, rng: Random) -> str:
    """Return a title, such as "Large Apple & Dog - Blue" or "Set of 3 Keys Clipart"."""
    names = [_name(thing, rng) for thing in scene.things]
    if scene.relation and rng.random() < 0.2:
        text = f" {rng.choice(english.RELATIONS[scene.relation])} ".join(names)
    else:
        text = rng.choice((" & ", " and ", ", ")).join(names)
    if rng.random() < 0.5:
        text += f" {rng.choice(FORMAT_WORDS)}"
    if rng.random() < 0.5:
        text += rng.choice((" - {}", " ({})", " on {}", " | {} background")).format(scene.background)
    return text.title()


def keywords(scene: Scene, rng: Random) -> str:
    """Return a keyword list, such as "apple, dog, blue, clipart"."""
    return ", ".join(_keywords([thing.noun for thing in scene.things], FORMAT_WORDS, scene.background, rng))


def shop(scene: Scene, rng: Random) -> str:
    """Return a shop line, such as "buy apple and dog sticker | free shipping"."""
    item = f"{' and '.join(thing.noun for thing in scene.things)} {rng.choice(PRODUCTS)}"
    if rng.random() < 0.4:
        item += rng.choice((" {}", " in {}", ", {}")).format(scene.background)
    number = rng.randrange(100, 1000)
    item = rng.choice(("buy {}", "{}", "{} for sale", "cute {}", f"{{}} no. {number}")).format(item)
    return item + rng.choice((" | ", " - ", ". ", ", ")) + rng.choice(MARKETING)


def sentence(scene: Scene, rng: Random) -> str:
    """Return an alt text, which is a human caption with less detail."""
    text = english.write_caption(scene, rng, 0.4)
    if text.startswith(("a ", "an ", "two ", "three ")) and " is " not in text and " are " not in text:
        text = rng.choice(("{}", "{}", "image of {}", "picture showing {}")).format(text)
    return text[0].upper() + text[1:] + rng.choice(("", "."))


def zh_title(scene: Scene, rng: Random) -> str:
    text = rng.choice(("和", "与", "、")).join(_zh_name(thing, rng) for thing in scene.things)
    if rng.random() < 0.5:
        text += rng.choice(ZH_FORMAT_WORDS)
    if rng.random() < 0.5:
        text += rng.choice((" - {}", "（{}）", " {}背景")).format(chinese.COLOURS[scene.background])
    return text


def zh_keywords(scene: Scene, rng: Random) -> str:
    names = [art.vocabulary()[thing.noun].zh for thing in scene.things]
    return "，".join(_keywords(names, ZH_FORMAT_WORDS, chinese.COLOURS[scene.background], rng))


def zh_shop(scene: Scene, rng: Random) -> str:
    names = "和".join(art.vocabulary()[thing.noun].zh for thing in scene.things)
    return names + rng.choice(ZH_PRODUCTS) + rng.choice((" ", "，", " | ")) + rng.choice(ZH_MARKETING)


def zh_sentence(scene: Scene, rng: Random) -> str:
    return chinese.write_caption(scene, rng, 0.4) + rng.choice(("", "。"))


def _name(thing: Thing, rng: Random) -> str:
    """Return a noun as in a title: no article, sometimes a size, perhaps a number if there are several."""
    noun = art.vocabulary()[thing.noun]
    size = rng.choice(english.SIZE_WORDS[thing.size]) + " " if rng.random() < 0.3 else ""
    if thing.count == 1:
        return size + noun.en
    return rng.choice(("", f"{thing.count} ", f"set of {thing.count} ")) + size + noun.plural


def _zh_name(thing: Thing, rng: Random) -> str:
    noun = art.vocabulary()[thing.noun]
    number = f"{thing.count}{noun.measure}" if thing.count > 1 and rng.random() < 0.5 else ""
    return number + (chinese.SIZE_WORDS[thing.size] if rng.random() < 0.3 else "") + noun.zh


def _keywords(names: list[str], formats: tuple[str, ...], colour: str, rng: Random) -> list[str]:
    words = names + rng.sample(formats, rng.choice((1, 2, 2, 3)))
    if rng.random() < 0.5:
        words.append(colour)
    rng.shuffle(words)
    return words


STYLES = {
    "en": {"title": title, "keywords": keywords, "shop": shop, "sentence": sentence},
    "zh": {"title": zh_title, "keywords": zh_keywords, "shop": zh_shop, "sentence": zh_sentence},
}
MARKETING_PHRASES = {"en": MARKETING, "zh": ZH_MARKETING}
