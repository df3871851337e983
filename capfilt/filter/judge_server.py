"""`--judge openai:MODEL`: a judge behind a server with OpenAI's chat API, such as vLLM, SGLang and llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from PIL import Image

from capfilt.filter.judge import JUDGE_ERROR, JudgeConfig, Judgement, read_rubric, read_yes_no
from capfilt.filter.scorer import Runtime, Scorer, group_by_picture
from capfilt.vlm.answer import Answer
from capfilt.vlm.server import ChatRequest, ChatServer, encode_jpeg, openai_fingerprint

# Most that OpenAI's and vLLM's servers report.
TOP_LOGPROBS = 20
EncodedPicture = tuple[bytes, str]


class ServerJudge(Scorer):
    """Asks a server about every text.

    Answers are cached by (pixels, text, model, question, settings). `judge_error` is refused, no_answer (neither yes
    nor no), malformed, too_long, empty, rejected, too_large, timeout or failed, with details after a colon.
    """

    name = "judge"
    packages = ("openai",)
    list_columns = (JUDGE_ERROR.name,)
    # batches whose answers may be missing while the next one is read
    batches_ahead = 2

    def __init__(self, config: JudgeConfig) -> None:
        self.config, self.model = config, config.model.partition(":")[2]
        self.columns, self.settings = config.columns, config.settings()
        self.read = read_yes_no if config.by == "vqa" else read_rubric
        self.server: ChatServer | None = None

    @property
    def fingerprint(self) -> str:
        return openai_fingerprint(self.model)

    @property
    def spent(self) -> float:
        """Dollars of this run's answers, 0 without prices."""
        return 0.0 if self.server is None else self.server.spent

    def load(self, runtime: Runtime) -> None:
        """Connect, and judge a grey picture; ValueError for a fault that all pictures would have."""
        config = self.config
        alternatives = 1 + TOP_LOGPROBS if config.by == "vqa" else 1
        self.server = ChatServer(self.model, config.server, config.max_new_tokens * alternatives)
        jpeg, digest = encode_jpeg(Image.new("RGB", (224, 224), "grey"))
        text = "a grey square"
        answer = self.server.check(self._key(digest, text), self._request(jpeg, text))
        if config.by == "vqa" and isinstance(answer, Answer) and answer.text and answer.tops is None:
            raise ValueError(
                f"The server at {self.server.url} gives no log-probabilities (top_logprobs), which the score vqa "
                "needs; judge by numbers from 1 to 5 with --set judge.by=rubric."
            )

    def prepare(self, image: Image.Image, /) -> EncodedPicture:
        return encode_jpeg(image)

    def start_scoring(
        self, inputs: Sequence[EncodedPicture], texts: Sequence[Sequence[str]]
    ) -> Callable[[], dict[str, Any]]:
        """Start the requests; return a function that waits for the scores."""
        assert self.server is not None
        futures: list[Future[Judgement]] = [
            self.server.start(self._judge(picture, text))
            for picture, texts_of_picture in zip(inputs, texts, strict=True)
            for text in texts_of_picture
        ]
        return lambda: by_column([future.result() for future in futures], self.columns, texts)

    def score(self, inputs: Sequence[EncodedPicture], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return the scores and the reasons of missing ones; EngineError if the server is gone."""
        return self.start_scoring(inputs, texts)()

    async def _judge(self, picture: EncodedPicture, text: str) -> Judgement:
        assert self.server is not None
        jpeg, digest = picture
        answer = await self.server.ask(self._key(digest, text), self._request(jpeg, text))
        return Judgement(error=answer) if isinstance(answer, str) else self.read(answer)

    def _key(self, digest: str, text: str) -> Any:
        """Return what a judgement depends on."""
        return ["judge", self.model, self.config.settings(), text, digest]

    def _request(self, jpeg: bytes, text: str) -> ChatRequest:
        config = self.config
        tops = TOP_LOGPROBS if config.by == "vqa" else 0
        return ChatRequest(config.format_question(text), jpeg, config.system, config.max_new_tokens, tops, config.extra)


def by_column(
    judgements: Sequence[Judgement], columns: Sequence[str], texts: Sequence[Sequence[str]]
) -> dict[str, list[list[Any]]]:
    """Return the scores of a flat list of judgements per column and picture, None for none, and their errors."""
    missing = (None,) * len(columns)
    values: dict[str, list[Any]] = {
        name: [(judgement.scores or missing)[place] for judgement in judgements] for place, name in enumerate(columns)
    }
    values[JUDGE_ERROR.name] = [judgement.error for judgement in judgements]
    return {name: group_by_picture(column, texts) for name, column in values.items()}
