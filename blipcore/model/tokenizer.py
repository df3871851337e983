"""BERT's WordPiece tokenizer with BLIP's two extra tokens, and the cleaning of captions and questions.

A text becomes [first] pieces... [SEP]. The first token is the role: [CLS] (text alone), [ENC] (read with an image) or
[DEC] (generated for an image). [DEC] and [ENC] are appended, in this order, to a vocabulary that lacks them
(models/blip.py, `init_tokenizer`). Importing transformers takes seconds, so only `tokenizers` is used.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from blipcore.io.hub import TOKENIZER_FILES, TOKENIZER_SETTINGS, VOCABULARY_FILES, download_from_hub

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEC, ENC = "[DEC]", "[ENC]"
# Official text length in retrieval and ITM, with first token and [SEP].
TEXT_TOKENS = 35

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")
# BERT's vocabularies hold Chinese and Japanese characters singly; WordPiece joins them with spaces.
_CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_BETWEEN_CJK = re.compile(f"(?<=[{_CJK}]) (?=[{_CJK}])")
# Names in tokenizer_config.json -> attributes of BertNormalizer.
_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-case a caption, replace . ! " ( ) * # : ; ~ by spaces, and keep the first `max_words` words.

    Same as `pre_caption` of the official data/utils.py.
    """
    text = _PUNCTUATION.sub(" ", text.lower())
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def join_words(words: Sequence[str]) -> str:
    """Join words by spaces, Chinese and Japanese characters without."""
    return _BETWEEN_CJK.sub("", " ".join(words))


def clean_question(text: str, max_words: int = 50) -> str:
    """Lower-case a question, delete . ! " ( ) * # : ; ~, and keep the first `max_words` words.

    Same as `pre_question` of the official data/utils.py.
    """
    text = _PUNCTUATION.sub("", text.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


class Tokenizer:
    """A BERT WordPiece tokenizer with [DEC] and [ENC]. Picklable, for the workers of a data loader."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        # "[SEP]" in a web caption is text, not a special token.
        backend.encode_special_tokens = True
        if backend.decoder is None:
            backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        missing = [token for token in BERT_SPECIALS if backend.token_to_id(token) is None]
        if missing:
            raise ValueError(f"The vocabulary lacks {', '.join(missing)}: BLIP needs BERT's special tokens.")
        backend.add_special_tokens([*BERT_SPECIALS, DEC, ENC])
        # For other readers of a saved tokenizer.json; `__call__` adds first token and [SEP] itself.
        ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
        self.backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        self.pad, self.unk, self.cls, self.sep, self.mask = (vocab[token] for token in BERT_SPECIALS)
        self.bos, self.enc = vocab[DEC], vocab[ENC]

    @classmethod
    def from_vocab(cls, vocab: Sequence[str] | str | Path) -> "Tokenizer":
        """Build a tokenizer from a list of tokens or a vocab.txt with one token per line."""
        if isinstance(vocab, (str, Path)):
            # Not splitlines(): a token may be a character that Python treats as a line end.
            vocab = Path(vocab).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        ids = {token: index for index, token in enumerate(vocab)}
        if len(ids) != len(vocab):
            duplicate = next(token for token, count in Counter(vocab).items() if count > 1)
            raise ValueError(f"The vocabulary has {duplicate!r} twice: list each token once.")
        return cls(_bert_pipeline(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)))

    @classmethod
    def load(cls, source: str | Path) -> "Tokenizer":
        """Load a tokenizer from a folder with tokenizer.json or vocab.txt, one of these files, or a hub id."""
        path = Path(source)
        if not path.exists():
            path = download_from_hub(str(source), TOKENIZER_FILES)
        if path.is_dir():
            existing = [path / name for name in VOCABULARY_FILES if (path / name).is_file()]
            if not existing:
                raise FileNotFoundError(
                    f"{source} has neither tokenizer.json nor vocab.txt: pass --tokenizer with one of these."
                )
            path = existing[0]
        try:
            if path.suffix == ".json":
                tokenizer = cls(tokenizers.Tokenizer.from_file(str(path)))
            else:
                tokenizer = cls.from_vocab(path)
            settings = path.with_name(TOKENIZER_SETTINGS)
            if settings.is_file():
                tokenizer.apply_settings(json.loads(settings.read_text(encoding="utf-8")))
            return tokenizer
        except ValueError as error:
            raise ValueError(f"{path} is not a BERT vocabulary: {error}") from error
        except Exception as error:  # tokenizers raises a bare Exception for a file that it cannot parse
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 2000, min_frequency: int = 2) -> "Tokenizer":
        """Learn a lower-case WordPiece vocabulary from `texts`. The same texts give the same vocabulary."""
        bert = _bert_pipeline(models.WordPiece(unk_token="[UNK]"))
        words: Counter[str] = Counter()
        for text in texts:
            normalised = bert.normalizer.normalize_str(_replace_surrogates(text))
            words.update(word for word, _ in bert.pre_tokenizer.pre_tokenize_str(normalised))
        letters: Counter[str] = Counter()
        for word, count in words.items():
            # A letter that occurs twice in a word counts once.
            for piece in {word[0], *(f"##{letter}" for letter in word[1:])}:
                letters[piece] += count
        frequent = [piece for piece, count in letters.items() if count >= min_frequency]
        frequent.sort(key=lambda piece: (-letters[piece], piece))
        alphabet = sorted(frequent[: max(0, vocab_size - len(BERT_SPECIALS) - 2)])
        # The trainer numbers letters in the order of a randomly seeded hash map and breaks ties between merges by these
        # numbers. A sorted alphabet, and no word outside it, makes it deterministic.
        known = set(alphabet)
        usable = {w for w in words if w[0] in known and all(f"##{letter}" in known for letter in w[1:])}
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size - 2,  # without [DEC] and [ENC]
            min_frequency=min_frequency,
            special_tokens=[*BERT_SPECIALS, *alphabet],
            show_progress=False,
        )
        learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        learner.train_from_iterator((" ".join([word] * words[word]) for word in sorted(usable)), trainer)
        vocab = learner.get_vocab(with_added_tokens=True)
        return cls.from_vocab(sorted(vocab, key=vocab.__getitem__))

    def apply_settings(self, settings: Mapping[str, Any]) -> None:
        """Adopt lower-casing, accent stripping and splitting of Chinese from a tokenizer_config.json.

        It overrides tokenizer.json, as in transformers.
        """
        normalizer = self.backend.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            for name, attribute in _NORMALIZER_SETTINGS.items():
                if name in settings:
                    setattr(normalizer, attribute, settings[name])

    def settings(self) -> dict[str, Any]:
        """Return the content of tokenizer_config.json: special tokens and normalisation."""
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        settings: dict[str, Any] = {"tokenizer_class": "BertTokenizer", **dict(zip(names, BERT_SPECIALS, strict=True))}
        normalizer = self.backend.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            settings |= {name: getattr(normalizer, attribute) for name, attribute in _NORMALIZER_SETTINGS.items()}
        return settings

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, for tools that read BERT's format, vocab.txt."""
        self.backend.save(str(Path(folder) / "tokenizer.json"))
        settings = json.dumps(self.settings(), indent=2) + "\n"
        (Path(folder) / TOKENIZER_SETTINGS).write_text(settings, encoding="utf-8")
        vocab = self.backend.get_vocab(with_added_tokens=True)
        lines = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
        (Path(folder) / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, with [DEC] and [ENC]."""
        return len(self)

    def __call__(
        self,
        texts: Sequence[str],
        max_length: int,
        first: Literal["cls", "dec", "enc"] = "cls",
        pad_to_max: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return ids and mask, both (R, L) int64; L is the longest of the batch, or `max_length` with `pad_to_max`."""
        if max_length < 2:
            raise ValueError(f"max_length {max_length} leaves no room for the first token and [SEP]: use at least 2.")
        start = {"cls": self.cls, "dec": self.bos, "enc": self.enc}[first]
        # One by one: encode_batch starts threads, which do not survive the fork of a data loader's workers.
        pieces = [self._pieces(text) for text in texts]
        rows = [[start, *ids[: max_length - 2], self.sep] for ids in pieces]
        length = max_length if pad_to_max else max(map(len, rows), default=0)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return ids, mask

    def prompt(self, text: str) -> list[int]:
        """Return [DEC] and the ids of a prompt, without [SEP]."""
        return [self.bos, *self._pieces(text)]

    def _pieces(self, text: str) -> list[int]:
        return self.backend.encode(_replace_surrogates(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text of `ids`, without special tokens and spaces between Chinese or Japanese characters."""
        text = self.backend.decode([int(index) for index in ids], skip_special_tokens=True).strip()
        return _BETWEEN_CJK.sub("", text)

    def __getstate__(self) -> str:
        return self.backend.to_str()

    def __setstate__(self, state: str) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state))  # type: ignore[misc]  # unpickling skips __init__


def _replace_surrogates(text: str) -> str:
    """Return `text` with "?" for each unpaired surrogate (half an emoji), which JSON may contain."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _bert_pipeline(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return backend
