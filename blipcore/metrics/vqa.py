"""VQA accuracy: the agreement of an answer with those of ten people, from 0 to 1.

The rules are those of the VQA challenge (EvalAI, after vqaEval.py of GT-Vision-Lab/VQA), oddities included, so that
numbers can be compared.
"""

import re
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {word: str(max(0, index - 1)) for index, word in enumerate(NUMBER_WORDS)}  # "none" is 0 too
PUNCTUATION_MARKS = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")

# Words whose missing apostrophe is restored. Those that mean something else without it (were, well, its, ill, shed,
# shell, id) are not listed, nor a few that the challenge's table lacks.
APOSTROPHE_WORDS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
    y'all'll y'all'd've you'd you'd've you'll you're you've she'd've we'd've
""".split()  # noqa: SIM905 (more readable than a list of quoted strings)
CONTRACTIONS = {
    word[:index] + word[index + 1 :]: word
    for word in APOSTROPHE_WORDS
    for index, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # reversed in the challenge's table


def normalize_answer(text: str) -> str:
    """Normalize an answer: lower case, digits for numbers up to ten, no articles, no punctuation, all apostrophes.

    A punctuation mark next to a space is deleted, and so is every mark if the text has a number like 1,000; other
    marks become spaces. Periods are deleted unless a digit follows.
    """
    text = strip_answer(text)
    normalized = text
    for mark in PUNCTUATION_MARKS:
        delete = f"{mark} " in text or f" {mark}" in text or COMMA_IN_NUMBER.search(text)
        normalized = normalized.replace(mark, "" if delete else " ")
    normalized = PERIOD.sub("", normalized)
    words = [DIGITS.get(word, word) for word in normalized.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def strip_answer(text: str) -> str:
    """Return an answer in one line, without spaces around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return min(1, people who gave the answer / 3), averaged over leaving out each person in turn.

    If all people agree, answers are compared without normalization, as in the official code. With a single reference
    (Visual Genome, easy-vqa) the accuracy is 1 for an equal normalized answer, else 0.
    """
    references = [strip_answer(text) for text in references]
    if len(references) == 1 or len(set(references)) > 1:
        answer, references = normalize_answer(answer), [normalize_answer(text) for text in references]
    agrees = [text == answer.strip() for text in references]
    if len(references) == 1:
        return float(agrees[0])
    return sum(min(1.0, (sum(agrees) - agree) / 3) for agree in agrees) / len(agrees)
