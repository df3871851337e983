"""COCO's caption scores in percent: BLEU-4, METEOR, ROUGE-L, CIDEr (which may exceed 100), SPICE.

The scorers are COCO's (pycocoevalcap). METEOR, SPICE and COCO's tokenizer, which published numbers use, are Java
programs. Without Java, `plain_words` splits captions, METEOR and SPICE are left out, and the other scores are close to
the official ones but not equal.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

Words = Literal["auto", "ptb", "plain"]
TokenizedTexts = dict[int, list[str]]  # picture -> its tokenized texts
ScoreFunction = Callable[[TokenizedTexts, TokenizedTexts], float]  # (references, captions) -> score from 0 to 1

JAVA_SCORES = ("METEOR", "SPICE")
SCORE_ORDER = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
# Tokens of the Penn Treebank that COCO drops (pycocoevalcap/tokenizer/ptbtokenizer.py).
DROPPED_TOKENS = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"}
DROPPED_TOKENS |= {".", "?", "!", ",", ":", "-", "--", "...", ";"}
LINE_ENDS = re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
NEGATION = re.compile(r"n't\b")
TOKEN = re.compile(r"n't|'\w+|\w+(?:-\w+)*")
CJK_CHARACTER = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")  # each is a word


def caption_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    words: Words = "auto",
    domains: Sequence[str | None] = (),
) -> dict[str, Any]:
    """Score one caption per picture against its references, and each of the `domains` on its own.

    `words` is "ptb" for COCO's tokenizer, "plain" for `plain_words` without Java, and "auto" for the first if Java is
    installed. A domain's scores, under its name, are of its pictures alone, including CIDEr's document frequencies. The
    result also has the "tokenizer" and, if scores are missing, "left_out": name -> reason.

    Raises ValueError for captions or references that cannot be scored, ImportError without pycocoevalcap.
    """
    truth, captions, ptb = _tokenize(hypotheses, references, words)
    scorers, left_out = _load_scorers(ptb)
    scores: dict[str, Any] = _score(scorers, left_out, truth, captions)
    for domain in dict.fromkeys(domain for domain in domains if domain):
        rows = [row for row, other in enumerate(domains) if other == domain]
        scores[domain] = _score(
            scorers, left_out, {row: truth[row] for row in rows}, {row: captions[row] for row in rows}
        )
    scores["tokenizer"] = "ptb" if ptb else "plain"
    if left_out:
        scores["left_out"] = left_out
    return scores


def cider_of_pictures(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], words: Words = "auto"
) -> list[float]:
    """Return the CIDEr in percent of each picture; their mean is that of `caption_scores`. Raises as it does."""
    truth, captions, _ = _tokenize(hypotheses, references, words)
    _package_folder()
    from pycocoevalcap.cider.cider import Cider

    return [100.0 * float(score) for score in Cider().compute_score(truth, captions)[1]]


def _tokenize(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], words: Words
) -> tuple[TokenizedTexts, TokenizedTexts, bool]:
    """Return the tokenized references and captions, and whether COCO's tokenizer was used."""
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} captions cannot be scored against references of {len(references)} pictures."
        )
    if not hypotheses:
        raise ValueError("There are no captions to score.")
    without_reference = [row for row, texts in enumerate(references) if not texts]
    if without_reference:
        raise ValueError(f"Picture {without_reference[0]} has no reference caption.")
    ptb = words == "ptb" or (words == "auto" and has_java())
    texts = [*hypotheses, *(text for picture in references for text in picture)]
    tokenized = iter(ptb_words(texts) if ptb else [plain_words(text) for text in texts])
    captions = {row: [next(tokenized)] for row in range(len(hypotheses))}
    truth = {row: [next(tokenized) for _ in picture] for row, picture in enumerate(references)}
    if not any(text for picture in truth.values() for text in picture):
        raise ValueError("The reference captions hold no word.")
    return truth, captions, ptb


def require_scorers(words: Words) -> None:
    """Raise ImportError or ValueError if `caption_scores` would lack a package or Java."""
    _package_folder()
    if words == "ptb" and not has_java():
        raise ValueError("COCO's tokenizer needs Java, which is not installed: install Java or set words=plain.")


def has_java() -> bool:
    """Return whether Java is installed."""
    return shutil.which("java") is not None


def ptb_words(texts: Sequence[str]) -> list[str]:
    """Split texts with COCO's tokenizer: Stanford's PTBTokenizer in lower case, without punctuation.

    Raises ValueError if it fails.
    """
    require_scorers("ptb")
    jar = _package_folder() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    lines = "".join(LINE_ENDS.sub(" ", text) + "\n" for text in texts)
    process = subprocess.run(command, input=lines.encode(), capture_output=True)
    split = process.stdout.decode().split("\n")[:-1]
    if process.returncode or len(split) != len(texts):
        messages = process.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ValueError(f"COCO's tokenizer failed ({messages[-1]}): repair Java or set words=plain.")
    return [" ".join(word for word in line.split(" ") if word not in DROPPED_TOKENS) for line in split]


def plain_words(text: str) -> str:
    """Split a text into lower-case words without punctuation: "A dog's toy, isn't it?" -> "a dog 's toy is n't it".

    As in the Penn Treebank, possessives and "n't" are words and hyphenated words are not split. As usual in scoring,
    each Chinese or Japanese character is a word.
    """
    text = CJK_CHARACTER.sub(r" \1 ", text.lower().replace("’", "'"))
    return " ".join(TOKEN.findall(NEGATION.sub(" n't", text)))


def _package_folder() -> Path:
    try:
        import pycocoevalcap.bleu.bleu
    except ImportError as error:
        raise ImportError("Caption scores need pycocoevalcap: pip install 'capfilt[eval]'") from error
    return Path(pycocoevalcap.bleu.bleu.__file__).parents[1]


def _load_scorers(java: bool) -> tuple[dict[str, ScoreFunction], dict[str, str]]:
    """Return the available scorers by name, and name -> reason for the others."""
    package = _package_folder()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scorers: dict[str, ScoreFunction] = {
        "BLEU-4": lambda truth, captions: Bleu(4).compute_score(truth, captions, verbose=0)[0][3],
        "ROUGE-L": lambda truth, captions: Rouge().compute_score(truth, captions)[0],
        "CIDEr": lambda truth, captions: Cider().compute_score(truth, captions)[0],
    }
    if not java:
        return scorers, dict.fromkeys(JAVA_SCORES, "needs Java and COCO's tokenizer")
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()  # a process, which loads its tables once for all calls
    scorers["METEOR"] = lambda truth, captions: meteor.compute_score(truth, captions)[0]
    models = [package / "spice" / "lib" / f"stanford-corenlp-3.6.0{part}.jar" for part in ("", "-models")]
    if not all(model.is_file() for model in models):
        # Without this check pycocoevalcap would download them.
        install = "python -m pycocoevalcap.spice.get_stanford_models"
        return scorers, {"SPICE": f"its models are not installed ({install} downloads them)"}
    from pycocoevalcap.spice.spice import Spice

    scorers["SPICE"] = lambda truth, captions: Spice().compute_score(truth, captions)[0]
    return scorers, {}


def _score(
    scorers: dict[str, ScoreFunction], left_out: dict[str, str], truth: TokenizedTexts, captions: TokenizedTexts
) -> dict[str, float]:
    """Return scores in percent. If a Java program fails, its score moves to `left_out`."""
    scores = {}
    for name in SCORE_ORDER:
        if name in scorers and name not in left_out:
            try:
                scores[name] = 100.0 * float(scorers[name](truth, captions))
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                if name not in JAVA_SCORES:
                    raise
                left_out[name] = f"its Java program failed ({error})"
    return scores
