"""`--judge hf:MODEL`: a judge of transformers, in the worker process, read from the next token's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from capfilt.filter.judge import JUDGE_ERROR, JudgeConfig, Judgement, spells, yes_share
from capfilt.filter.judge_server import by_column
from capfilt.filter.scorer import Runtime, Scorer, picture_of_each_text
from capfilt.vlm.hf_files import find_folders, hf_fingerprint, model_family

if TYPE_CHECKING:
    from torch import Tensor

    from capfilt.vlm.hf_model import HfModel

# Pairs per forward pass: each has the tokens of its picture.
PAIRS = 16
# Families that caption and answer no questions.
CAPTION_ONLY = ("blip", "florence2", "git", "kosmos-2", "pix2struct", "vision-encoder-decoder")
# Families whose processors pad between picture and question, so a shorter question in a batch gets another score.
PADS_INSIDE = ("blip-2", "instructblip")
# Forms of a question on the pages of families without a chat template.
FORMS = {"blip-2": "Question: {} Answer:", "paligemma": "answer en {}"}


class HfJudge(Scorer):
    """Reads the probabilities of "yes" and "no" from the model's scores of the next token."""

    name = "judge"
    columns = ("vqa",)
    packages = ("transformers",)
    list_columns = (JUDGE_ERROR.name,)

    def __init__(self, config: JudgeConfig) -> None:
        self.config, self.path = config, config.model.partition(":")[2]
        self.settings = {name: value for name, value in config.settings().items() if name != "max_new_tokens"}

    @cached_property
    def fingerprint(self) -> str:  # read once: it covers all files of the model
        return hf_fingerprint(self.path, self.config.trust_remote_code)

    def load(self, runtime: Runtime) -> None:
        """Load and check the model; ValueError or FileNotFoundError says why it cannot judge."""
        from capfilt.vlm.hf_model import HfModel

        family = self.family = model_family(find_folders(self.path, self.config.trust_remote_code).base)
        if family in CAPTION_ONLY:
            raise ValueError(
                f"{self.path} is of the family {family}, which answers no questions; judge with an instruction-tuned "
                "model, such as hf:Qwen/Qwen2.5-VL-3B-Instruct."
            )
        self.form = FORMS.get(family, "{}")
        self.model: HfModel = HfModel(
            self.path,
            self._prompt("a grey square"),
            system=self.config.system,
            max_new_tokens=1,
            trust_remote_code=self.config.trust_remote_code,
            device=runtime.device,
            dtype=runtime.dtype,
        )
        vocabulary = self.model.tokenizer.get_vocab()
        self.tokens = {
            word: sorted(number for token, number in vocabulary.items() if spells(token) == word)
            for word in ("yes", "no")
        }
        for word, tokens in self.tokens.items():
            if not tokens:
                raise ValueError(f"{self.path} has no token for '{word}', so it cannot judge; use another model.")

    def score(self, inputs: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return VQAScore of the texts of RGB images, and the reasons of missing ones."""
        pictures = [inputs[index] for index in picture_of_each_text(texts)]
        prompts = [self.model.inputs.format(self._prompt(text)) for row in texts for text in row]
        size = PAIRS if self.model.takes_batches and self.family not in PADS_INSIDE else 1
        judgements: list[Judgement] = []
        for start in range(0, len(prompts), size):
            judgements += self._judge(pictures[start : start + size], prompts[start : start + size])
        return by_column(judgements, self.columns, texts)

    def _judge(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Judgement]:
        """Return the judgements of a batch; a question that is too long for the model gets an error of its own."""
        if not self.model.fits(pictures, prompts, 1):
            if len(prompts) == 1:
                return [Judgement(error="too_long: the text is longer than the model reads")]
            pairs = zip(pictures, prompts, strict=True)
            return [judgement for picture, prompt in pairs for judgement in self._judge([picture], [prompt])]
        reader = NextToken(self.model.first_token)
        self.model.generate(pictures, reader, reader.steps, prompts=prompts)
        probabilities = reader.scores.softmax(-1)
        yes, no = (probabilities[:, self.tokens[word]].sum(-1).tolist() for word in ("yes", "no"))
        return [yes_share(y, n) for y, n in zip(yes, no, strict=True)]

    def _prompt(self, text: str) -> str:
        """Return the question about a text, without spellings of the model's special tokens, such as <image>."""
        if hasattr(self, "model"):
            for token in self.model.special_tokens:
                text = text.replace(token, " ")
        return self.form.format(self.config.format_question(text))


class NextToken:
    """A logits processor that keeps the model's scores of the first token that it may choose."""

    def __init__(self, first_token: int | None) -> None:
        """Begin the answer with `first_token`, if the model forces one."""
        self.first_token, self.steps = first_token, 1 if first_token is None else 2
        self.scores: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep `scores` (R, V); return them with all but one token at minus infinity."""
        import torch

        self.scores = scores.float().cpu()
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.first_token or 0] = 0.0
        return masked
