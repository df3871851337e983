"""VQA's accuracy: an answer is right as far as people gave it, after both were brought to one spelling.

In: an answer and those of the people asked (ten in VQA v2). Out: a number in [0, 1]. The rules are those of the VQA
challenge's evaluation (EvalAI, after vqaEval.py of GT-Vision-Lab/VQA), oddities included: numbers are to be compared.
"""

import re
from collections.abc import Sequence

_ARTICLES = {"a", "an", "the"}
_NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(max(0, place - 1)) for place, word in enumerate(_NUMBERS)}  # "none" is 0 too
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

# Where one apostrophe of these is missing, it is put back. Words that mean something without (were, well, its, ill,
# shed, shell, id) are left alone, as are a few more that the challenge's table lacks.
_SHORT = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
    y'all'll y'all'd've you'd you'd've you'll you're you've she'd've we'd've
""".split()  # noqa: SIM905 (a list of these would be a page of quotation marks)
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _SHORT for place, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round in the challenge's table


def normalize_answer(text: str) -> str:
    """Lower case, no articles, numbers up to ten as digits, apostrophes in contractions, punctuation out of the way.

    A punctuation mark next to a space is deleted, and every mark where the text has a number like 1,000; other marks
    become spaces. Periods go unless a digit follows.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in _PUNCTUATION:
        delete = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text)
        out = out.replace(mark, "" if delete else " ")
    out = _PERIOD.sub("", out)
    words = [_DIGITS.get(word, word) for word in out.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """min(1, people who said it / 3), as the mean over leaving out each of the people in turn.

    Where all of them agree the official code compares spellings as they are. A single reference (Visual Genome,
    easy-vqa) leaves nobody to compare with: then it is plain equality after normalising.
    """
    said = [text.replace("\n", " ").replace("\t", " ").strip() for text in people]
    if len(said) == 1 or len(set(said)) > 1:
        answer, said = normalize_answer(answer), [normalize_answer(text) for text in said]
    agreed = [text == answer.strip() for text in said]
    if len(said) == 1:
        return float(agreed[0])
    return sum(min(1.0, (sum(agreed) - own) / 3) for own in agreed) / len(agreed)
