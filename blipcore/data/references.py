"""Statistics of reference texts, for making wrong texts and for judging texts, in any language.

References of one picture state the same facts in different words; references of different pictures use the same words
for different facts. So counts alone show which words state facts, without a list of words:

    claim       a word that is nearly always in another reference of the picture too: nouns, numbers, colours
    slot        a place in a sentence, given by its neighbours and perhaps a claim nearby, with the phrases seen there
    exclusive   two phrases that share slots, but seldom in references of one picture: "two dogs" and "a cat",
                "above" and "under"; synonyms such as "small" and "little" do share pictures

A wrong text exchanges a phrase of a reference for an exclusive one of the same slot, or swaps two words.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

Words = tuple[str, ...]
Slot = tuple[str, ...]

PHRASE_WORDS = 3  # of an exchanged phrase, at most
SWAP_DISTANCE = 8  # words between two swapped words, at most
START, END = "<s>", "</s>"
CLAIM_NOVELTY = 0.15  # of the references with a claim, largest share in which it is the only one of its picture
CLAIM_PICTURES = 0.2  # largest share of pictures with a claim
COMMON_PICTURES = 0.25  # words of more pictures are left out of outlines
MIN_EVIDENCE = 3.0  # expected pictures with both phrases if these are independent; none then occurs by chance in 5%
EXCLUSIVE = 0.1  # largest number of pictures with both, relative to the expected one


class References:
    """The reference texts of many pictures, each as a tuple of words, with their statistics.

    About 0.1 GB and 2 s per 1,000 pictures of five references.
    """

    def __init__(self, texts: Sequence[Sequence[Words]], outlines: bool = True) -> None:
        self.texts = [list(dict.fromkeys(of_picture)) for of_picture in texts]
        self.words = [set().union(*of_picture) for of_picture in self.texts]
        self._count_words()
        self._count_slots()
        self._count_swaps()
        # Texts without frequent words, so that "a dog under a small cat" and "dog, under cat" share slots.
        self.outline = None
        if outlines:
            self.outline = References([list(map(self._outline, of_picture)) for of_picture in self.texts], False)
        self._slots_of_picture = [self._claimed_slots(of_picture) for of_picture in self.texts]

    def exchange(self, picture: int, text: Words, rng: random.Random) -> Words | None:
        """Return `text`, a reference of the picture, with a phrase exchanged for one that makes it wrong.

        Returns None if the drawn place has no such phrase.
        """
        padded = (START, *text, END)
        first, length = rng.randrange(1, len(padded) - 1), rng.randint(1, PHRASE_WORDS)
        if first + length >= len(padded):
            return None
        phrase = padded[first : first + length]
        phrases = self._slots.get((padded[first - 1], padded[first + length]), {})
        others = [other for other, pictures in phrases.items() if picture not in pictures and _differ(phrase, other)]
        if not others:
            return None
        other = rng.choices(others, [len(phrases[other]) for other in others])[0]
        both, expected = self._shared_pictures(phrase, other)
        is_new = any(word in self.claims and word not in self.words[picture] for word in other)
        if both > EXCLUSIVE * expected or (expected < MIN_EVIDENCE and not is_new):
            return None
        return (*text[: first - 1], *other, *text[first - 1 + length :])

    def swap(self, picture: int, text: Words, rng: random.Random) -> Words | None:
        """Return `text`, a reference of the picture, with two words swapped so that it becomes wrong.

        "A dog above a cat" becomes "a cat above a dog", but "a dog and a cat" is left: references of other pictures
        have such words in both orders. Returns None if there are no words to swap.
        """
        padded = (START, *text, END)
        for first, second in rng.sample(pairs := list(_pairs(text)), len(pairs)):
            between = text[first + 1 : second]
            if self._same_order[between] < 3 or self._swapped[between] > EXCLUSIVE * self._same_order[between]:
                continue
            one, two = (text[first],), (text[second],)
            slots = [(padded[index], padded[index + 2]) for index in (first, second)]
            if two in self._slots.get(slots[0], {}) and one in self._slots.get(slots[1], {}):
                swapped = (*text[:first], *two, *between, *one, *text[second + 1 :])
                if swapped not in self.texts[picture]:
                    return swapped
        return None

    def judge(self, picture: int, text: Words) -> bool | None:
        """Return whether a text agrees with the references of a picture; None for a text without any claim.

        A text is wrong if it has a claim that no reference has, if it repeats a claim more often than any reference, or
        if it has, in a slot beside a claim, a phrase that is exclusive with the reference's phrase in this slot.
        """
        claims = Counter(word for word in text if word in self.claims)
        if not claims:
            return None
        references = self.texts[picture]
        if any(number > max(reference.count(word) for reference in references) for word, number in claims.items()):
            return False
        if self._contradicts(picture, text):
            return False
        return self.outline is None or not self.outline._contradicts(picture, self._outline(text))

    def _contradicts(self, picture: int, text: Words) -> bool:
        known = self._slots_of_picture[picture]
        for slot, phrase in self._phrases(text):
            references = known.get(slot, ())
            if phrase not in references and any(self._exclusive(phrase, other) for other in references):
                return True
        return False

    def _exclusive(self, phrase: Words, other: Words) -> bool:
        both, expected = self._shared_pictures(phrase, other)
        return expected >= MIN_EVIDENCE and both <= EXCLUSIVE * expected

    def _shared_pictures(self, phrase: Words, other: Words) -> tuple[int, float]:
        """Return the pictures with both phrases in one slot, over all slots, and their expected number."""
        key = (phrase, other) if phrase < other else (other, phrase)
        if key not in self._shared:
            both, expected = 0, 0.0
            for slot in self._slots_of_phrase[phrase] & self._slots_of_phrase[other]:
                one, two = self._slots[slot][phrase], self._slots[slot][other]
                both += len(one & two)
                expected += len(one) * len(two) / self._pictures_of_slot[slot]
            self._shared[key] = both, expected
        return self._shared[key]

    def _phrases(self, text: Words) -> Iterator[tuple[Slot, Words]]:
        """Yield every phrase of a text with each of its slots."""
        padded = (START, *text, END)
        for first in range(1, len(padded) - 1):
            for stop in range(first + 1, min(first + PHRASE_WORDS + 1, len(padded))):
                for slot in self._slots_at(padded, first, stop):
                    yield slot, padded[first:stop]

    def _slots_at(self, padded: Words, first: int, stop: int) -> list[Slot]:
        """Return the slots of a phrase: its neighbours, alone and with the nearest claim before and after it.

        With the claim, "left" and "right" exclude each other in "a dog on the left and a cat on the right".
        """
        slots: list[Slot] = [(padded[first - 1], padded[stop])]
        before = next((word for word in reversed(padded[: first - 1]) if word in self.claims), None)
        after = next((word for word in padded[stop + 1 :] if word in self.claims), None)
        if before and padded[first - 1] not in self.claims:
            slots.append((*slots[0], "before", before))
        if after and padded[stop] not in self.claims:
            slots.append((*slots[0], "after", after))
        return slots

    def _outline(self, text: Words) -> Words:
        return tuple(word for word in text if word not in self._common)

    def _count_words(self) -> None:
        texts_with, alone, pictures = Counter[str](), Counter[str](), Counter[str]()
        for of_picture, words in zip(self.texts, self.words, strict=True):
            pictures.update(words)
            number = Counter(word for text in of_picture for word in set(text))
            if len(of_picture) > 1:
                texts_with.update(number)
                alone.update(word for word, texts in number.items() if texts == 1)
        few = CLAIM_PICTURES * len(self.texts)
        self.claims = {
            word
            for word, number in texts_with.items()
            if number > 1 and alone[word] <= CLAIM_NOVELTY * number and pictures[word] <= max(few, 1)
        }
        self._common = {word for word, number in pictures.items() if number > COMMON_PICTURES * len(self.texts)}

    def _count_slots(self) -> None:
        slots: dict[Slot, dict[Words, set[int]]] = defaultdict(lambda: defaultdict(set))
        for picture, of_picture in enumerate(self.texts):
            for text in of_picture:
                for slot, phrase in self._phrases(text):
                    slots[slot][phrase].add(picture)
        self._slots = {slot: dict(phrases) for slot, phrases in slots.items() if len(phrases) > 1}
        self._pictures_of_slot = {slot: len(set().union(*phrases.values())) for slot, phrases in self._slots.items()}
        self._slots_of_phrase: dict[Words, set[Slot]] = defaultdict(set)
        for slot, phrases in self._slots.items():
            for phrase in phrases:
                self._slots_of_phrase[phrase].add(slot)
        self._shared: dict[tuple[Words, Words], tuple[int, float]] = {}

    def _count_swaps(self) -> None:
        """Count, by the words between two words, how often another reference has both in the same or swapped order."""
        self._same_order, self._swapped = Counter[Words](), Counter[Words]()
        for of_picture in self.texts:
            pairs = [{(text[i + 1 : j], text[i], text[j]) for i, j in _pairs(text)} for text in of_picture]
            for number, own in enumerate(pairs):
                for other in pairs[:number] + pairs[number + 1 :]:
                    self._same_order.update(between for between, one, two in own & other)
                    self._swapped.update(between for between, one, two in own if (between, two, one) in other)

    def _claimed_slots(self, of_picture: Sequence[Words]) -> dict[Slot, set[Words]]:
        """Return the slots of a picture beside a claim, with their phrases."""
        slots: dict[Slot, set[Words]] = defaultdict(set)
        for text in of_picture:
            for slot, phrase in self._phrases(text):
                if not self.claims.isdisjoint(slot):
                    slots[slot].add(phrase)
        return dict(slots)


def _pairs(text: Words) -> Iterator[tuple[int, int]]:
    """Yield the places of two different words with others between them."""
    for first in range(len(text)):
        for second in range(first + 2, min(len(text), first + SWAP_DISTANCE)):
            if text[first] != text[second]:
                yield first, second


def _differ(phrase: Words, other: Words) -> bool:
    """Return whether two phrases differ at both ends: otherwise a shorter phrase has the same difference."""
    return phrase != other and (len(phrase) == 1 or (phrase[0] != other[0] and phrase[-1] != other[-1]))
