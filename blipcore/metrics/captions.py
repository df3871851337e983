"""COCO's caption scores, in percent: BLEU-4, METEOR, ROUGE-L, CIDEr, SPICE (CIDEr may pass 100).

The scorers are those of COCO (pycocoevalcap). Published numbers rest on its tokenizer, a Java program, as METEOR and
SPICE are. Without Java captions are split by `plain_words` here, METEOR and SPICE are left out, and the scores say so:
they are then close to the official ones, not equal.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

Words = Literal["auto", "ptb", "plain"]
Texts = dict[int, list[str]]  # picture -> its tokenised texts

JAVA = ("METEOR", "SPICE")
ORDER = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
# What COCO drops of the Penn Treebank's tokens (pycocoevalcap/tokenizer/ptbtokenizer.py).
PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"}
PUNCTUATION |= {".", "?", "!", ",", ":", "-", "--", "...", ";"}
LINE_ENDS = re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
NEGATION = re.compile(r"n't\b")
TOKEN = re.compile(r"n't|'\w+|\w+(?:-\w+)*")
UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")  # of Chinese and Japanese: each is a word


def caption_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    words: Words = "auto",
    domains: Sequence[str | None] = (),
) -> dict[str, Any]:
    """Scores of one caption a picture against its references, and the same for each of the `domains` under its name.

    A domain's pictures are scored as a set of their own, CIDEr's document frequencies included. `words` is "ptb" for
    COCO's tokenizer (an error without Java), "plain" for ours and no Java at all, "auto" for the first where there is
    Java. "tokenizer" says which one it was, "left_out" which scores could not be had, and why.
    """
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} captions cannot be scored against references of {len(references)} pictures"
        )
    if not hypotheses:
        raise ValueError("there are no captions to score")
    bare = [row for row, own in enumerate(references) if not own]
    if bare:
        raise ValueError(f"picture {bare[0]} has no reference caption")
    ptb = words == "ptb" or (words == "auto" and has_java())
    tokenise = ptb_words if ptb else lambda texts: [plain_words(text) for text in texts]
    tokens = iter(tokenise([*hypotheses, *(text for own in references for text in own)]))
    found = {row: [next(tokens)] for row in range(len(hypotheses))}
    truth = {row: [next(tokens) for _ in own] for row, own in enumerate(references)}
    if not any(text for own in truth.values() for text in own):
        raise ValueError("the reference captions hold no word")

    scorers, left_out = _scorers(ptb)
    scores: dict[str, Any] = _score(scorers, left_out, truth, found)
    for domain in dict.fromkeys(domain for domain in domains if domain):
        rows = [row for row, own in enumerate(domains) if own == domain]
        parts = ({row: texts[row] for row in rows} for texts in (truth, found))
        scores[domain] = _score(scorers, left_out, *parts)
    return scores | {"tokenizer": "ptb" if ptb else "plain"} | ({"left_out": left_out} if left_out else {})


def require_scorers(words: Words) -> None:
    """ImportError or ValueError for what `caption_scores` would lack: before captions are written, not after."""
    _package()
    if words == "ptb" and not has_java():
        raise ValueError("COCO's tokenizer needs Java, and there is none: install a Java runtime or set words=plain")


def has_java() -> bool:
    """Whether there is a Java to run COCO's tokenizer, METEOR and SPICE."""
    return shutil.which("java") is not None


def ptb_words(texts: Sequence[str]) -> list[str]:
    """Texts as COCO's tokenizer splits them: Stanford's PTBTokenizer in lower case, without punctuation."""
    require_scorers("ptb")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(_package() / "tokenizer" / "stanford-corenlp-3.4.1.jar")]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    lines = "".join(LINE_ENDS.sub(" ", text) + "\n" for text in texts)
    run = subprocess.run(command, input=lines.encode(), capture_output=True)
    split = run.stdout.decode().split("\n")[:-1]
    if run.returncode or len(split) != len(texts):
        why = run.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"COCO's tokenizer failed ({why[0]}): mend Java or set words=plain")
    return [" ".join(word for word in line.split(" ") if word not in PUNCTUATION) for line in split]


def plain_words(text: str) -> str:
    """Lower-case words joined by spaces, punctuation dropped: "A dog's toy, isn't it?" -> "a dog 's toy is n't it".

    As the Penn Treebank does: possessives and "n't" stand alone, hyphenated words stay whole. Every Chinese or
    Japanese character is a word, as is usual in scoring captions in them.
    """
    text = UNSPACED.sub(r" \1 ", text.lower().replace("’", "'"))
    return " ".join(TOKEN.findall(NEGATION.sub(" n't", text)))


def _package() -> Path:
    try:
        import pycocoevalcap.bleu.bleu
    except ImportError as error:
        raise ImportError("caption scores need pycocoevalcap: pip install 'capfilt[eval]'") from error
    return Path(pycocoevalcap.bleu.bleu.__file__).parents[1]


def _scorers(java: bool) -> tuple[dict[str, Callable[[Texts, Texts], float]], dict[str, str]]:
    """Score name -> function of references and captions giving a share of 1; and those that cannot be had, with why."""
    package = _package()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scorers = {
        "BLEU-4": lambda truth, found: Bleu(4).compute_score(truth, found, verbose=0)[0][3],
        "ROUGE-L": lambda truth, found: Rouge().compute_score(truth, found)[0],
        "CIDEr": lambda truth, found: Cider().compute_score(truth, found)[0],
    }
    if not java:
        return scorers, dict.fromkeys(JAVA, "needs Java and COCO's tokenizer")
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()  # a process, which loads its tables once for all calls
    scorers["METEOR"] = lambda truth, found: meteor.compute_score(truth, found)[0]
    models = [package / "spice" / "lib" / f"stanford-corenlp-3.6.0{part}.jar" for part in ("", "-models")]
    if not all(model.is_file() for model in models):  # its own code would download them unasked
        install = "python -m pycocoevalcap.spice.get_stanford_models"
        return scorers, {"SPICE": f"its models are not installed ({install} downloads them)"}
    from pycocoevalcap.spice.spice import Spice

    scorers["SPICE"] = lambda truth, found: Spice().compute_score(truth, found)[0]
    return scorers, {}


def _score(
    scorers: dict[str, Callable[[Texts, Texts], float]], left_out: dict[str, str], truth: Texts, found: Texts
) -> dict[str, float]:
    """Scores in percent; a Java program that fails moves its score to `left_out`."""
    scores = {}
    for name in ORDER:
        if name in scorers and name not in left_out:
            try:
                scores[name] = 100.0 * float(scorers[name](truth, found))
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                if name not in JAVA:
                    raise
                left_out[name] = f"its Java program failed ({error})"
    return scores
