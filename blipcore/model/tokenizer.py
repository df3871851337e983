"""Text in, token ids out, and back: BERT's WordPiece with BLIP's two extra tokens.

Every text becomes [first] pieces… [SEP]. The first token tells the text transformer what the text is for: [CLS]
(a text alone), [ENC] (read with a picture) or [DEC] (written for a picture). [DEC] and [ENC] are appended to a
vocabulary that lacks them, in this order, as the official code does. Tasks tokenise in their `collate`; generation
asks for the prompt's ids and turns ids into strings.

Built on `tokenizers` alone: transformers takes seconds to import.
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

from blipcore.io.hub import SETTINGS, TOKENIZER_FILES, VOCABULARIES, download

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEC, ENC = "[DEC]", "[ENC]"
TEXT_TOKENS = 35  # official length of a text in retrieval and ITM, first token and [SEP] included

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")
# BERT's vocabularies hold Chinese and Japanese as single characters, which WordPiece joins by spaces.
_CJK = "\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
_BETWEEN_CJK = re.compile(f"(?<=[{_CJK}]) (?=[{_CJK}])")
# transformers' names in tokenizer_config.json, and those of the normalizer.
_NORMALIZER = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
_NORMALIZER |= {"tokenize_chinese_chars": "handle_chinese_chars"}


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-cased caption of at most `max_words` words; the ten characters . ! " ( ) * # : ; ~ become spaces."""
    text = _PUNCTUATION.sub(" ", text.lower())
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_question(text: str, max_words: int = 50) -> str:
    """Lower-cased question of at most `max_words` words; the characters that captions lose are deleted, not spaced."""
    text = _PUNCTUATION.sub("", text.lower()).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


class Tokenizer:
    """BERT WordPiece tokenizer with [DEC] and [ENC]; picklable, so a data loader's workers can hold one."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        # A web caption that contains "[SEP]" is text, not a control token.
        backend.encode_special_tokens = True
        if backend.decoder is None:
            backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
        missing = [token for token in BERT_SPECIALS if backend.token_to_id(token) is None]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}: BLIP needs BERT's special tokens")
        backend.add_special_tokens([*BERT_SPECIALS, DEC, ENC])
        # Not for us, who frame rows ourselves: for whoever opens a saved tokenizer.json.
        ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
        self.backend = backend
        self.pad, self.unk, self.cls, self.sep, self.mask = (backend.token_to_id(token) for token in BERT_SPECIALS)
        self.bos: int = backend.token_to_id(DEC)
        self.enc: int = backend.token_to_id(ENC)

    @classmethod
    def from_vocab(cls, vocab: Sequence[str] | str | Path) -> "Tokenizer":
        """From a list of tokens, or a vocab.txt with one token a line; a token's id is its place."""
        if isinstance(vocab, (str, Path)):
            # Not splitlines(): a vocabulary may hold characters that Python takes for line ends.
            vocab = Path(vocab).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        ids = {token: index for index, token in enumerate(vocab)}
        if len(ids) != len(vocab):
            twice = next(token for token, count in Counter(vocab).items() if count > 1)
            raise ValueError(f"the vocabulary holds {twice!r} twice: one token a line, each once")
        return cls(_bert(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)))

    @classmethod
    def load(cls, source: str | Path) -> "Tokenizer":
        """From a folder (tokenizer.json or vocab.txt), one of these files, or a Hugging Face hub id."""
        path = Path(source)
        if not path.exists():
            path = download(str(source), TOKENIZER_FILES)
        if path.is_dir():
            found = [path / name for name in VOCABULARIES if (path / name).is_file()]
            if not found:
                raise FileNotFoundError(
                    f"{source} holds neither tokenizer.json nor vocab.txt: pass --tokenizer with one of these"
                )
            path = found[0]
        try:
            if path.suffix == ".json":
                tokenizer = cls(tokenizers.Tokenizer.from_file(str(path)))
            else:
                tokenizer = cls.from_vocab(path)
            if (settings := path.with_name(SETTINGS)).is_file():
                tokenizer.normalising(json.loads(settings.read_text(encoding="utf-8")))
            return tokenizer
        except ValueError as error:
            raise ValueError(f"{path} is not a BERT vocabulary: {error}") from error
        except Exception as error:  # tokenizers raises bare Exception for a file it cannot parse
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 2000, min_frequency: int = 2) -> "Tokenizer":
        """Learn a lower-case WordPiece vocabulary from `texts`: the same texts give the same vocabulary."""
        bert = _bert(models.WordPiece(unk_token="[UNK]"))
        words: Counter[str] = Counter()
        for text in texts:
            normal = bert.normalizer.normalize_str(_whole(text))
            words.update(word for word, _ in bert.pre_tokenizer.pre_tokenize_str(normal))
        pieces: Counter[str] = Counter()
        for word, count in words.items():
            pieces.update({piece: count for piece in [word[0], *(f"##{letter}" for letter in word[1:])]})
        alphabet = sorted((piece for piece in pieces if pieces[piece] >= min_frequency), key=lambda p: (-pieces[p], p))
        alphabet = sorted(alphabet[: max(0, vocab_size - len(BERT_SPECIALS) - 2)])
        # The trainer numbers single letters in the order of a randomly seeded hash map and breaks ties between merges
        # by these numbers. Handing the alphabet over in order, and no word outside it, makes it deterministic.
        known = set(alphabet)
        usable = {w for w in words if w[0] in known and all(f"##{letter}" in known for letter in w[1:])}
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size - 2,  # [DEC] and [ENC] follow
            min_frequency=min_frequency,
            special_tokens=[*BERT_SPECIALS, *alphabet],
            show_progress=False,
        )
        learner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        learner.train_from_iterator((" ".join([word] * words[word]) for word in sorted(usable)), trainer)
        vocab = learner.get_vocab(with_added_tokens=True)
        return cls.from_vocab(sorted(vocab, key=vocab.__getitem__))

    def normalising(self, settings: Mapping[str, Any]) -> None:
        """Lower-case, strip accents and split Chinese as a tokenizer_config.json says.

        Where such a file and tokenizer.json disagree, transformers follows the former, and so do we.
        """
        given = {ours: settings[name] for name, ours in _NORMALIZER.items() if name in settings}
        if isinstance(self.backend.normalizer, normalizers.BertNormalizer):
            for name, value in given.items():
                setattr(self.backend.normalizer, name, value)

    def settings(self) -> dict[str, Any]:
        """What tokenizer_config.json holds: the special tokens, and how a text is normalised."""
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        tokens = dict(zip(names, BERT_SPECIALS, strict=True))
        normalizer = self.backend.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            tokens |= {name: getattr(normalizer, ours) for name, ours in _NORMALIZER.items()}
        return {"tokenizer_class": "BertTokenizer", **tokens}

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, vocab.txt for tools that read BERT's own format, and tokenizer_config.json."""
        self.backend.save(str(Path(folder) / "tokenizer.json"))
        settings = json.dumps(self.settings(), indent=2) + "\n"
        (Path(folder) / SETTINGS).write_text(settings, encoding="utf-8")
        vocab = self.backend.get_vocab(with_added_tokens=True)
        lines = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
        (Path(folder) / "vocab.txt").write_text(lines, encoding="utf-8", newline="\n")

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, [DEC] and [ENC] included."""
        return len(self)

    def __call__(
        self,
        texts: Sequence[str],
        max_length: int,
        first: Literal["cls", "dec", "enc"] = "cls",
        pad_to_max: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask, both (B, L) int64; L is the longest of the batch, or `max_length` with `pad_to_max`."""
        if max_length < 2:
            raise ValueError(f"max_length {max_length} leaves no room for the first token and [SEP]: give at least 2")
        start = {"cls": self.cls, "dec": self.bos, "enc": self.enc}[first]
        # One by one: encode_batch starts threads, which a data loader's forked workers must not inherit.
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
        """Ids a caption starts from: [DEC] and the prompt's pieces, without [SEP]."""
        return [self.bos, *self._pieces(text)]

    def _pieces(self, text: str) -> list[int]:
        return self.backend.encode(_whole(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of `ids`, special tokens left out; characters that are written without spaces are joined again."""
        text = self.backend.decode([int(index) for index in ids], skip_special_tokens=True).strip()
        return _BETWEEN_CJK.sub("", text)

    def __getstate__(self) -> str:
        return self.backend.to_str()

    def __setstate__(self, state: str) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state))


def _whole(text: str) -> str:
    """`text` with "?" for each half of a surrogate pair, of which JSON may hold one alone: half an emoji."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _bert(model: models.Model) -> tokenizers.Tokenizer:
    """An uncased BERT pipeline around `model`."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return backend
