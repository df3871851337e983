"""Caption scores against hand-counted cases and COCO's evaluation, with and without Java."""

import builtins
import functools
import shutil
import subprocess

import pytest
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from blipcore.metrics import captions as module
from blipcore.metrics.captions import has_java, plain_words, ptb_words

needs_java = pytest.mark.skipif(not has_java(), reason="no Java")
NUMBERS = {"BLEU-4", "ROUGE-L", "CIDEr"}
caption_scores = functools.partial(module.caption_scores, words="plain")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog's toy, isn't it?", "a dog 's toy is n't it"),
        ("two T-shirts - 3 for $5.", "two t-shirts 3 for 5"),
        ("He can’t", "he ca n't"),
        ("Ein Café\nim Grünen", "ein café im grünen"),
        ("一只狗，在沙发上 ok", "一 只 狗 在 沙 发 上 ok"),
        ("!?", ""),
    ],
)
def test_plain_words(text, tokens) -> None:
    assert plain_words(text) == tokens


REFERENCES = [
    ["a red cat sits on a blue mat", "the red cat is sitting on the mat"],
    ["two green birds fly over the sea", "a pair of green birds above the water"],
    ["a man rides a brown horse", "a man on a horse in a field"],
]


def test_captions_equal_to_a_reference_have_the_highest_scores(capsys) -> None:
    scores = caption_scores([texts[0].upper() + "." for texts in REFERENCES], REFERENCES)
    assert scores["BLEU-4"] == pytest.approx(100, abs=1e-3) and scores["ROUGE-L"] == pytest.approx(100)
    assert scores["CIDEr"] > 300  # 1000 for a single reference; halved or so by the other one
    assert capsys.readouterr().out == ""


def test_cider_of_a_caption_equal_to_the_only_reference_is_1000() -> None:
    """CIDEr-D is 10 by definition if no word is in every picture."""
    scores = caption_scores([texts[0] for texts in REFERENCES], [texts[:1] for texts in REFERENCES])
    assert scores["CIDEr"] == pytest.approx(1000)


def test_bleu_and_rouge_by_hand() -> None:
    """Precisions 5/6, 3/5, 2/4, 1/3, equal lengths; longest common subsequence 5 of 6 on both sides."""
    scores = caption_scores(["a b c d x f"], [["a b c d e f"]])
    assert scores["BLEU-4"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, rel=1e-3)
    assert scores["ROUGE-L"] == pytest.approx(100 * 5 / 6)


def test_worse_captions_score_lower() -> None:
    right = caption_scores([texts[0] for texts in REFERENCES], REFERENCES)
    wrong = caption_scores([REFERENCES[(row + 1) % 3][0] for row in range(3)], REFERENCES)
    empty = caption_scores([""] * 3, REFERENCES)
    for name in NUMBERS:
        assert right[name] > wrong[name] >= empty[name] >= 0


def test_captions_without_references_are_refused() -> None:
    with pytest.raises(ValueError, match="2 captions cannot be scored against references of 1"):
        caption_scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="no captions"):
        caption_scores([], [])
    with pytest.raises(ValueError, match="Picture 1 has no reference"):
        caption_scores(["a", "b"], [["a"], []])


def test_a_missing_package_is_named(monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[eval\]'"):
        caption_scores(["a"], [["a"]])


# --- with and without Java -------------------------------------------------------------------------------------------

AWKWARD = [
    "A dog's toy, isn't it?",
    "",
    "two T-shirts - 3 for $5. Wow!",
    "Café (in) “Grün” 😀\u2028über\x85x",
    " ",
    "a/b",
    "",
]


@needs_java
def test_ptb_words_equal_those_of_coco() -> None:
    official = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(AWKWARD[:3])})
    assert ptb_words(AWKWARD[:3]) == [official[n][0] for n in range(3)]
    assert ptb_words(AWKWARD)[:3] == ["a dog 's toy is n't it", "", "two t-shirts 3 for $ 5 wow"]
    assert ptb_words(AWKWARD)[3].endswith("über x") and ptb_words(AWKWARD)[4:] == ["", "a/b", ""]


@needs_java
@pytest.mark.slow  # METEOR loads 60 MB of paraphrases at each start
def test_meteor_and_domains_with_java() -> None:
    captions = ["the red cat is sitting on the mat", "a pair of birds", "a horse"]
    scores = module.caption_scores(captions, REFERENCES, domains=["in-domain", None, "out-domain"])
    assert scores["tokenizer"] == "ptb" and scores.get("left_out", {}).keys() <= {"SPICE"}
    assert scores["in-domain"]["METEOR"] == pytest.approx(100) and 0 < scores["out-domain"]["METEOR"] < 50
    assert 0 < scores["METEOR"] < 100
    alone = caption_scores(captions[:1], REFERENCES[:1])
    assert {name: scores["in-domain"][name] for name in NUMBERS} == pytest.approx({n: alone[n] for n in NUMBERS})
    reference = {n: [plain_words(text) for text in texts] for n, texts in enumerate(REFERENCES)}
    expected, _ = Meteor().compute_score(reference, {n: [text] for n, text in enumerate(captions)})
    assert scores["METEOR"] == pytest.approx(100 * expected)


@needs_java
def test_a_failing_tokenizer_is_an_error_of_one_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(module, "_package_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"COCO's tokenizer failed \(.*PTBTokenizer.*\): repair Java or"):
        ptb_words(["a"])


def test_without_java_the_scores_that_need_it_are_left_out_with_a_reason(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores = module.caption_scores(["a red cat"], REFERENCES[:1])
    assert scores.keys() == NUMBERS | {"tokenizer", "left_out"} and scores["tokenizer"] == "plain"
    assert scores["left_out"].keys() == {"METEOR", "SPICE"} and "Java" in scores["left_out"]["METEOR"]
    with pytest.raises(ValueError, match="install Java or set words=plain"):
        module.caption_scores(["a red cat"], REFERENCES[:1], words="ptb")


@pytest.fixture
def fake_java(monkeypatch):
    """Let METEOR and SPICE start and fail without Java."""
    monkeypatch.setattr(module, "has_java", lambda: True)
    monkeypatch.setattr(module, "ptb_words", lambda texts: [plain_words(text) for text in texts])
    monkeypatch.setattr(Meteor, "__init__", lambda self: None)
    monkeypatch.setattr(Meteor, "__del__", lambda self: None)
    monkeypatch.setattr(Meteor, "compute_score", lambda self, truth, captions: (float(""), []))


def test_scores_of_failing_java_programs_are_left_out_with_a_reason(fake_java) -> None:
    scores = module.caption_scores(["a red cat"], REFERENCES[:1])
    assert scores.keys() == NUMBERS | {"tokenizer", "left_out"} and scores["tokenizer"] == "ptb"
    assert "its Java program failed" in scores["left_out"]["METEOR"]
    assert "get_stanford_models" in scores["left_out"]["SPICE"]


def test_spice_runs_if_its_models_are_installed(fake_java, monkeypatch, tmp_path) -> None:
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for part in ("", "-models"):
        (tmp_path / "spice" / "lib" / f"stanford-corenlp-3.6.0{part}.jar").touch()
    monkeypatch.setattr(module, "_package_folder", lambda: tmp_path)
    monkeypatch.setattr(Spice, "__init__", lambda self: None)
    monkeypatch.setattr(Spice, "compute_score", lambda self, truth, captions: (0.238, []))
    assert module.caption_scores(["a red cat"], REFERENCES[:1])["SPICE"] == pytest.approx(23.8)

    def fail(self, truth, captions):
        raise subprocess.CalledProcessError(1, "java")

    monkeypatch.setattr(Spice, "compute_score", fail)
    assert "its Java program failed" in module.caption_scores(["a red cat"], REFERENCES[:1])["left_out"]["SPICE"]


def test_references_without_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="The reference captions hold no word"):
        caption_scores(["a dog", "a cat"], [["!"], ["", "..."]])
