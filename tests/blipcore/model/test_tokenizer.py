"""The tokenizer: first and end tokens, padding, files, training, other scripts, and the cleaning of captions."""

import json
import pickle
import random
from pathlib import Path

import huggingface_hub
import pytest

from blipcore.model.tokenizer import BERT_SPECIALS, Tokenizer, clean_caption

WORDS = ["a", "picture", "of", "dog", "run", "##ning", "##s", ",", "[", "]", "sep", "猫", "cafe"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_vocab([*BERT_SPECIALS, *WORDS])


def words(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.backend.id_to_token(i) for i in ids]


def test_dec_and_enc_follow_the_vocabulary(tokenizer: Tokenizer) -> None:
    size = len(BERT_SPECIALS) + len(WORDS)
    assert (tokenizer.bos, tokenizer.enc, tokenizer.vocab_size, len(tokenizer)) == (size, size + 1, size + 2, size + 2)
    assert (tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 1, 2, 3, 4)


def test_dec_and_enc_are_not_added_twice() -> None:
    tokenizer = Tokenizer.from_vocab(["[ENC]", *BERT_SPECIALS, "[DEC]", "dog"])
    assert (tokenizer.enc, tokenizer.bos, len(tokenizer)) == (0, 6, 8)


def test_rows_get_first_and_end_token_padding_and_mask(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(["dogs running", "dog", ""], max_length=30, first="enc")
    assert words(tokenizer, ids[0].tolist()) == ["[ENC]", "dog", "##s", "run", "##ning", "[SEP]"]
    assert words(tokenizer, ids[1].tolist()) == ["[ENC]", "dog", "[SEP]", "[PAD]", "[PAD]", "[PAD]"]
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert tokenizer(["dog"], max_length=30, pad_to_max=True)[0].shape == (1, 30)
    assert tokenizer([], max_length=30)[0].shape == (0, 0)


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer(["a picture of a dog"], max_length=4)
    assert words(tokenizer, ids[0].tolist()) == ["[CLS]", "a", "picture", "[SEP]"]


def test_max_length_without_room_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_length 1"):
        tokenizer(["dog"], max_length=1)


def test_prompt_starts_with_dec_and_has_no_end(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, tokenizer.prompt("a picture of ")) == ["[DEC]", "a", "picture", "of"]
    assert tokenizer.prompt("") == [tokenizer.bos]


def test_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer(["dog [SEP] [DEC]"], max_length=30)
    assert words(tokenizer, ids[0].tolist()) == ["[CLS]", "dog", "[", "sep", "]", "[", "[UNK]", "]", "[SEP]"]


def test_an_unpaired_surrogate_becomes_a_question_mark(tokenizer: Tokenizer) -> None:
    half = json.loads('"dog \\ud83d"')
    assert tokenizer([half], 30)[0].tolist() == tokenizer(["dog ?"], 30)[0].tolist()
    assert tokenizer.prompt(half) == tokenizer.prompt("dog ?")
    assert len(Tokenizer.train([half, half], vocab_size=30)) > 7


def test_decode_joins_pieces_and_skips_specials(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer(["Café, dogs RUNNING 猫"], max_length=30, first="dec")
    assert tokenizer.decode(ids[0]) == "cafe, dogs running 猫"
    assert tokenizer.decode([tokenizer.bos, tokenizer.unk, tokenizer.pad]) == ""


def test_pickled_tokenizer_is_the_same(tokenizer: Tokenizer) -> None:
    texts = ["a dog [SEP]", "running"]
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other(texts, 20)[0].tolist() == tokenizer(texts, 20)[0].tolist()
    assert other.backend.to_str() == tokenizer.backend.to_str()


@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.txt"])
def test_saved_tokenizer_loads_from_either_file(tokenizer: Tokenizer, tmp_path: Path, kept: str) -> None:
    tokenizer.save(tmp_path)
    for source in (tmp_path, tmp_path / kept):
        loaded = Tokenizer.load(source)
        assert loaded.backend.to_str() == tokenizer.backend.to_str() or kept == "vocab.txt"
        assert (loaded.bos, loaded.enc, len(loaded)) == (tokenizer.bos, tokenizer.enc, len(tokenizer))
        assert loaded(["a dog [SEP] 猫"], 20)[0].tolist() == tokenizer(["a dog [SEP] 猫"], 20)[0].tolist()
    (tmp_path / ({"tokenizer.json", "vocab.txt"} - {kept}).pop()).unlink()
    assert len(Tokenizer.load(tmp_path)) == len(tokenizer)


def test_training_is_deterministic() -> None:
    generator = random.Random(0)
    alphabet = "abcdefghijklmnop"
    lexicon = ["".join(generator.choices(alphabet, k=generator.randint(1, 6))) for _ in range(200)]
    texts = [" ".join(generator.choices(lexicon, k=8)) for _ in range(400)]
    vocabularies = {Tokenizer.train(texts, vocab_size=150).backend.to_str() for _ in range(6)}
    assert len(vocabularies) == 1
    assert len(Tokenizer.train(texts, vocab_size=150)) == 150


def test_training_learns_words_and_drops_rare_letters() -> None:
    tokenizer = Tokenizer.train(["two dogs, 两只猫"] * 5 + ["zebra"], vocab_size=200, min_frequency=2)
    ids, _ = tokenizer(["dogs 猫", "zebra"], max_length=10)
    assert words(tokenizer, ids[0].tolist()) == ["[CLS]", "dogs", "猫", "[SEP]"]
    assert words(tokenizer, ids[1].tolist())[1] == "[UNK]"


def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no_specials.txt").write_text("a\nb\n")
    (tmp_path / "twice.txt").write_text("[PAD]\na\na\n")
    (tmp_path / "binary.txt").write_bytes(b"\x80\x02\xff")
    (tmp_path / "broken.json").write_text("{")
    for name, message in {
        "no_specials.txt": "lacks .PAD.",
        "twice.txt": "'a' twice",
        "binary.txt": "not a BERT vocabulary",
        "broken.json": "not a tokenizer.json",
    }.items():
        with pytest.raises(ValueError, match=message):
            Tokenizer.load(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has neither"):
        Tokenizer.load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="No file or folder"):
        Tokenizer.load(tmp_path / "missing" / "vocab.txt")


def test_hub_name(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.save(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert len(Tokenizer.load("someone/bert")) == len(tokenizer)

    def offline(name, allow_patterns):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="hub did not provide it"):
        Tokenizer.load("someone/bert")


CHINESE = [*BERT_SPECIALS, *"图中有两一只猫和狗在的左边，。", "##s", "Bus", "bus", "é", "e"]


def test_chinese_is_read_and_written_as_it_stands() -> None:
    tokenizer = Tokenizer.from_vocab(CHINESE)
    for text in ("图中有两只猫，和一只狗。", "两只猫 bus 在狗的左边"):
        ids, _ = tokenizer([clean_caption(text)], max_length=40)
        assert tokenizer.unk not in ids
        assert tokenizer.decode(ids[0]) == text


@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.txt"])
def test_tokenizer_config_can_switch_lower_casing_off(tmp_path: Path, kept: str) -> None:
    """The vocabulary files of bert-base-chinese and the multilingual cased BERT do not tell the case."""
    Tokenizer.from_vocab(CHINESE).save(tmp_path)
    ({"tokenizer.json": tmp_path / "vocab.txt", "vocab.txt": tmp_path / "tokenizer.json"})[kept].unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 512}')
    cased = Tokenizer.load(tmp_path)
    ids, _ = cased(["Bus é 猫", "BUS"], max_length=10)
    assert words(cased, ids[0].tolist()) == ["[CLS]", "Bus", "é", "猫", "[SEP]"]
    assert words(cased, ids[1].tolist())[1] == "[UNK]"
    (tmp_path / "saved").mkdir()
    cased.save(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.json").unlink()
    assert Tokenizer.load(tmp_path / "saved")(["Bus é 猫", "BUS"], 10)[0].tolist() == ids.tolist()
    assert pickle.loads(pickle.dumps(cased))(["Bus é 猫", "BUS"], 10)[0].tolist() == ids.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "两只猫在一只狗的左边，背景是红色的",
        "ネコが二匹、窓の外に",
        "кошка на крыше",
        "قطة على السطح",
        "बिल्ली छत पर है",
        "고양이 두 마리",
        "Ναύτης 🐈‍⬛",
    ],
)
def test_cleaning_keeps_other_scripts_intact(text: str) -> None:
    assert clean_caption(text) == text.lower()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('A "Dog" (brown): runs!', "a dog brown runs"),
        ("well-known, isn't it? 3/4", "well-known, isn't it? 3/4"),
        ("  two\t\tspaces \n\n", "two spaces"),
        ("两只猫。Über #1", "两只猫。über 1"),
        ("", ""),
    ],
)
def test_clean_caption(text: str, clean: str) -> None:
    assert clean_caption(text) == clean


def test_clean_caption_keeps_max_words() -> None:
    assert clean_caption("w " * 50).split() == ["w"] * 30
    assert clean_caption("one two three", max_words=2) == "one two"
