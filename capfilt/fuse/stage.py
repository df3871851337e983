"""`capfilt fuse`: a model merges the web text and a caption of each picture into one caption.

After CapsFusion (arXiv 2310.20550), VeCLIP (2310.07699) and KALE (2411.07461): web texts have names and places,
synthetic captions describe what is visible. Reads the web texts and `captions/<source>/`. Writes
`captions/<name>/NNNNN.parquet`, a source like any other, with a row per caption of the source, and a manifest. An
answer that the guard rejects, and a picture without one of the texts, has a row without a text whose `error` is the
reason.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from blipcore.io.lock import lock_folder
from blipcore.io.samples import IndexedTar, choose_text
from blipcore.io.storage import AnyPath, list_names, to_path
from capfilt.caption.captioner import Caption
from capfilt.caption.chat import ChatConfig
from capfilt.caption.server import chat_fields, to_caption
from capfilt.engine.run import EngineConfig, run_shards
from capfilt.engine.worker import Worker
from capfilt.fuse.guard import Guard, has_caseless_letters
from capfilt.shards.format import CAPTIONS, WEB
from capfilt.shards.input_check import input_digests, require_same_inputs
from capfilt.shards.manifest import Manifest, read_manifest, remove_manifest_if_empty
from capfilt.shards.shard_set import ShardSet
from capfilt.shards.tables import read_table, write_table
from capfilt.vlm.cost import Cost, dollars
from capfilt.vlm.server import ChatRequest, ChatServer, ServerConfig, openai_fingerprint

PROMPT = """Merge two descriptions of one picture into a single caption.
Web text: {web}
Caption: {caption}
Keep names, places and numbers of the web text that can belong to the picture of the caption.
Leave out advertising and whatever contradicts the caption. Add nothing that is in neither text.
Answer with the merged caption alone, in one to three sentences."""
# Characters of the longest text that is sent; the error of a longer one is "long_web_text" or "long_caption".
MAX_CHARACTERS = 4000
# Columns of a captions table that are read.
COLUMNS = ["key", "index", "text"]


def _default_chat() -> ChatConfig:
    return ChatConfig(prompt=PROMPT, mode="greedy", max_new_tokens=160)


@dataclass(kw_only=True)
class FuseConfig(EngineConfig):
    """Settings of `capfilt fuse`."""

    # shard set with web texts and captions
    data: str
    # openai:MODEL, a text model behind a server
    model: str
    # captions to merge with the web texts; default: the only ones
    source: str = ""
    # folder under captions/, and the `source` of the merged texts
    name: str = "fused"
    # root of captions/; default: `data`
    out: str | None = None
    # languages of the answers, for number words and first words, by their codes in num2words; empty: digits alone
    languages: list[str] = field(default_factory=lambda: ["en"])
    # whether the first word of a sentence must be in an input too, in languages where that can be checked
    first_words: bool = True
    # request and decoding; the prompt holds {web} and {caption}
    chat: ChatConfig = field(default_factory=_default_chat)
    server: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, _, name = self.model.partition(":")
        if kind != "openai" or not name:
            raise ValueError(
                f"fuse asks a model behind a server, as openai:MODEL with --base-url, not '{self.model}'; `vllm serve` "
                "and `transformers serve` serve models of the hub."
            )
        if not re.fullmatch(r"\w[\w.+-]*", self.name) or self.name in (WEB, self.source):
            raise ValueError(f"name '{self.name}' must be letters, digits, . _ + or -, and neither '{WEB}' nor source.")
        for placeholder in ("{web}", "{caption}"):
            if placeholder not in self.chat.prompt:
                raise ValueError(f"chat.prompt must hold {placeholder}, which is replaced by the text of the picture.")
        if self.chat.num_captions != 1:
            raise ValueError("fuse writes one text per caption; remove chat.num_captions.")

    @property
    def model_name(self) -> str:
        return self.model.partition(":")[2]


@dataclass(frozen=True)
class Pair:
    """A web text and a caption of a picture, perhaps missing."""

    key: str
    index: int
    web: str | None
    caption: str | None

    def problem(self) -> str | None:
        """Return the reason why the texts cannot be merged, None if they can."""
        for name, text in (("web_text", self.web), ("caption", self.caption)):
            if text is None or not text.strip():
                return f"no_{name}"
            if len(text) > MAX_CHARACTERS:
                return f"long_{name}: {len(text)} characters, of at most {MAX_CHARACTERS}"
        return None

    def texts(self) -> list[str]:
        """Return web text and caption, each on one line."""
        return [" ".join((text or "").split()) for text in (self.web, self.caption)]


@dataclass
class FuseStage:
    """Merges the texts of a shard."""

    config: FuseConfig
    images: ShardSet
    folder: AnyPath
    # captions to merge, and those that replace the web texts, if any
    captions: AnyPath
    web: AnyPath | None
    name: str = "fuse"

    def output(self, shard: str) -> AnyPath:
        return self.folder / f"{shard}.parquet"

    def inputs(self, shard: str) -> list[AnyPath]:
        """Return what the output is made from."""
        tables = [folder / f"{shard}.parquet" for folder in (self.captions, self.web) if folder is not None]
        return [*tables, *([] if self.web else [self.images.tar(shard)])]

    def setup(self, device: str) -> None:
        config = self.config
        self.guard = Guard(config.languages, config.first_words)
        self.server = ChatServer(config.model_name, config.server, config.chat.max_new_tokens)
        self.server.check(*self._question(["A sunset.", "A red sky over the sea."]))

    def run(self, shard: str, worker: Worker) -> dict[str, int]:
        cost = Cost(self.server)
        columns: dict[str, list[Any]] = {name: [] for name in CAPTIONS.names}
        caseless, last = 0, ""
        for pair, caption in self._merge(shard):
            row = (pair.key, pair.index, caption.text, caption.logprob, caption.error)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            caseless += has_caseless_letters(caption.text or "")
            if pair.key != last:
                last = pair.key
                worker.advance(1, cost.since_last())
        reasons = Counter(str(error).partition(":")[0] for error in columns["error"] if error)
        counts = {"captions": len(columns["key"]) - reasons.total()}
        counts |= {"names_unchecked": caseless} if caseless else {}
        if reasons:
            counts |= {"no_caption": reasons.total(), **{f"no_caption/{name}": n for name, n in reasons.items()}}
        table = pa.table(columns, schema=CAPTIONS)
        write_table(self.output(shard), table, counts, make_folder=False, inputs=input_digests(self.inputs(shard)))
        return counts | cost.counts()

    def _merge(self, shard: str) -> Iterator[tuple[Pair, Caption]]:
        """Yield the merged text of each pair, with requests for at most three times `concurrency` pairs ahead."""
        waiting: deque[tuple[Pair, Future[Any] | None]] = deque()
        for pair in self._pairs(shard):
            future = None if pair.problem() else self.server.start(self.server.ask(*self._question(pair.texts())))
            waiting.append((pair, future))
            if len(waiting) > 3 * self.config.server.concurrency:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _finish(self, pair: Pair, future: Future[Any] | None) -> tuple[Pair, Caption]:
        if future is None:
            return pair, Caption(None, None, pair.problem())
        caption = to_caption(future.result(), self.config.chat.max_new_tokens)
        invented = None if caption.text is None else self.guard.problem(caption.text, pair.texts())
        return pair, Caption(None, None, f"{invented} (in: {caption.text})"[:500]) if invented else caption

    def _question(self, texts: list[str]) -> tuple[Any, ChatRequest]:
        """Return the key of the cache and the request for a web text and a caption."""
        chat = self.config.chat
        prompt = re.sub(r"\{(web|caption)\}", lambda match: texts[match[1] == "caption"], chat.prompt)
        settings = {name: value for name, value in asdict(chat).items() if name != "num_captions"}
        request = ChatRequest(prompt, None, chat.system, chat.max_new_tokens, fields=chat_fields(chat, 0))
        return ["fuse", self.config.model_name, settings, texts], request

    def _pairs(self, shard: str) -> Iterator[Pair]:
        """Yield the pairs of a shard, in the order of its captions."""
        web = self._web_texts(shard)
        table = read_table(self.captions / f"{shard}.parquet", COLUMNS)
        for key, index, text in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True):
            yield Pair(key, index, web.get(key), text)

    def _web_texts(self, shard: str) -> dict[str, str | None]:
        """Return key -> web text, by the rule of `capfilt filter`."""
        if self.web is not None:
            table = read_table(self.web / f"{shard}.parquet", COLUMNS)
            rows = zip(table["key"].to_pylist(), table["index"].to_pylist(), table["text"].to_pylist(), strict=True)
            return {key: text for key, index, text in rows if index == 0}
        own = self.images.read_own_table(shard, ("caption",)).to_pylist()
        captions = {row["key"]: row.get("caption") for row in own}
        with IndexedTar(self.images.tar(shard)) as tar:
            return {key: choose_text(tar.read_text(members), captions.get(key)) for key, members in tar.samples.items()}


def fuse_shards(config: FuseConfig, *, progress: bool = True) -> dict[str, Any]:
    """Merge the texts of every shard that has no table yet; return a summary with the counts of all shards.

    Raises ValueError or FileNotFoundError for captions that are missing or unfinished, a server that does not accept
    the request, and a folder made with other settings.
    """
    images = ShardSet.open(config.data)
    folders = _caption_folders(config, images)
    source = config.source or _only_source(config, folders)
    if source not in folders:
        known = ", ".join(sorted(set(folders) - {WEB})) or "none"
        raise FileNotFoundError(f"No captions named '{source}' in {config.data}; the sources are {known}.")
    folder = to_path(config.out or config.data) / "captions" / config.name
    stage = FuseStage(config, images, folder, folders[source], folders.get(WEB))
    _require_finished(stage, images)
    guard = Guard(config.languages, config.first_words)
    settings = {
        "fingerprint": openai_fingerprint(config.model_name),
        "chat": asdict(config.chat),
        "source": source,
        "guard": guard.settings(),
    }
    with lock_folder(folder, config.rank, config.world_size):
        if config.world_size == 1:
            remove_manifest_if_empty(folder)
        manifest = Manifest.begin(
            folder,
            "fuse",
            settings,
            images=images.path,
            parents=[path for path in (stage.captions, stage.web) if path is not None],
            packages=("openai", "num2words", "sentencex", "pyarrow"),
            shared=config.world_size > 1,
        )
        manifest.content.setdefault("model", config.model)  # for readers
        shards = config.shards_of_rank(images.shards)
        remedy = f"delete {folder}, or give another --name"
        require_same_inputs({stage.output(shard): stage.inputs(shard) for shard in shards}, remedy)
        run = run_shards(stage, shards, workers=config.workers, device="cpu", engine=config.engine, progress=progress)
        tables = {shard: stage.output(shard) for shard in images.shards}
        counts = manifest.record_run(tables, shards, run.failed, changed=run.done > 0)
    return {
        "stage": "fuse",
        "name": config.name,
        "source": source,
        "out": str(folder),
        "shards": {"done": run.done, "skipped": run.skipped, "failed": run.failed},
        "counts": counts,
        "dollars": dollars(run.counts),
        "seconds": round(run.seconds, 2),
    }


def _caption_folders(config: FuseConfig, images: ShardSet) -> dict[str, AnyPath]:
    """Return source -> folder of its captions; those in `out` come before those of the shard set."""
    roots = [images.path / "captions", to_path(config.out or config.data) / "captions"]
    return {
        name: root / name
        for root in roots
        for name in list_names(root)
        if not name.startswith(".") and any(table.endswith(".parquet") for table in list_names(root / name))
    }


def _only_source(config: FuseConfig, folders: dict[str, AnyPath]) -> str:
    names = sorted(set(folders) - {WEB, config.name})
    # texts that this command has made are no captions of a picture
    names = [name for name in names if (read_manifest(folders[name]) or {}).get("stage") != "fuse"]
    if len(names) == 1:
        return names[0]
    if not names:
        raise FileNotFoundError(f"{config.data} has no captions; run `capfilt caption` first.")
    raise ValueError(f"{config.data} has captions of {', '.join(names)}; choose one with --source.")


def _require_finished(stage: FuseStage, images: ShardSet) -> None:
    for folder in [stage.captions, *([stage.web] if stage.web is not None else [])]:
        names = set(list_names(folder))
        missing = [shard for shard in images.shards if f"{shard}.parquet" not in names]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} of {len(images.shards)} shards, {missing[0]} first; finish it first."
            )
