"""Declares the scorers of `capfilt filter`: the filter of `--model`, then `--clip`, `--scorer` and `--judge`.

A declared scorer knows its columns and fingerprint; its model is loaded later, by a worker. A new kind of checkpoint is
a file with a subclass of `Scorer` and a line in `FILTERS`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from blipcore.checkpoints.kind import Kind, checkpoint_kind, describe_use
from blipcore.io.messages import one_line
from capfilt.filter.config import ScoreConfig
from capfilt.filter.judge import JUDGE_ERROR
from capfilt.filter.scorer import FilterSettings, Runtime, Scorer
from capfilt.filter.sentences import SENTENCES, SentenceScorer
from capfilt.filter.vectors import PICTURE_VECTOR, VECTORS
from capfilt.pictures.batching import OUT_OF_MEMORY
from capfilt.shards.format import SCORES, VERDICT

# kind of checkpoint -> its scorer, with the columns itm and itc
FILTERS: dict[Kind, str] = {
    "blip": "capfilt.filter.blip:BlipScorer",
    "albef": "capfilt.filter.albef:AlbefScorer",
    "blip2 filter": "capfilt.filter.blip2:Blip2Scorer",
}
CLIP = "capfilt.filter.clip:OpenClipScorer"
LM = "capfilt.filter.lm:LmScorer"
STORED = "capfilt.filter.stored:StoredItcScorer"
JUDGES = {"openai": "capfilt.filter.judge_server:ServerJudge", "hf": "capfilt.filter.judge_hf:HfJudge"}
# columns of every filter
FILTER_COLUMNS = ("itm", "itc")
RESERVED_COLUMNS = {*SCORES.names, *VERDICT.names, "error", SENTENCES.name, JUDGE_ERROR.name}
RESERVED_COLUMNS |= {field.name for field in VECTORS}
# what a scorer of any class must have
MEMBERS = ("columns", "fingerprint", "prepare", "score")


class DeclaredScorer(NamedTuple):
    """A scorer with the names of its columns in the table, in the order of its own."""

    scorer: Scorer
    columns: tuple[str, ...]
    # as on the command line
    spec: str

    @property
    def list_columns(self) -> tuple[str, ...]:
        """Names of its results that are no numbers, stored beside the scores."""
        return getattr(self.scorer, "list_columns", ())

    def settings(self) -> dict[str, Any]:
        """Return what changes the scores, for the manifest."""
        return {"fingerprint": self.scorer.fingerprint, **getattr(self.scorer, "settings", {})}

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether the model reads only its start; False if the scorer cannot say."""
        return self.scorer.truncated(texts) if hasattr(self.scorer, "truncated") else [False] * len(texts)

    def load(self, runtime: Runtime) -> None:
        """Load the model. Raises ValueError if a custom scorer fails."""
        with self._named_errors("cannot be loaded"):
            if hasattr(self.scorer, "load"):
                self.scorer.load(runtime)

    def prepare(self, image: Image.Image) -> Any:
        """Return the input of `score` for an RGB image. Raises ValueError if a custom scorer fails."""
        with self._named_errors("failed"):
            return self.scorer.prepare(image)

    def score(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> dict[str, list[list[Any]]]:
        """Return the scores by the names of the table, and the list columns.

        Raises ValueError if they do not fit the texts, or if a custom scorer fails.
        """
        return self.start(inputs, texts)()

    def start(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> Callable[[], dict[str, list[list[Any]]]]:
        """Begin to score; return a function that waits for the result, see `score`."""
        with self._named_errors("failed"):
            wait = self._begin(inputs, [list(picture_texts) for picture_texts in texts])
        return lambda: self._check(wait(), texts)

    def _begin(self, inputs: Sequence[Any], texts: Sequence[Sequence[str]]) -> Callable[[], Any]:
        if hasattr(self.scorer, "start_scoring"):
            return self.scorer.start_scoring(inputs, texts)
        scores = self.scorer.score(inputs, texts)
        return lambda: scores

    def _check(self, scores: Any, texts: Sequence[Sequence[str]]) -> dict[str, list[list[Any]]]:
        """Return scores by the names of the table; ValueError if they do not fit the texts."""
        by_name: dict[str, list[list[Any]]] = {}
        for column, name in zip(self.scorer.columns, self.columns, strict=True):
            rows: list[list[float | None]]
            try:
                rows = [[None if x is None else float(x) for x in picture_scores] for picture_scores in scores[column]]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"{self.spec} returned no numbers as '{column}' ({one_line(repr(error))}).") from error
            if [len(row) for row in rows] != [len(picture_texts) for picture_texts in texts]:
                raise ValueError(f"{self.spec} returned '{column}' of another shape than the texts of the pictures.")
            by_name[name] = rows
        # The vectors of pictures are one per picture.
        names = (*self.list_columns, *([PICTURE_VECTOR.name] if PICTURE_VECTOR.name in scores else []))
        return by_name | {name: scores[name] for name in names}

    @contextmanager
    def _named_errors(self, problem: str) -> Iterator[None]:
        """Name the scorer in the errors of custom code, except for a lack of memory."""
        try:
            yield
        except (Exception, SystemExit) as error:
            is_memory = isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
            if is_memory or type(self.scorer).__module__.startswith("capfilt."):
                raise
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"The scorer {self.spec} {problem} ({reason}).") from error


def declare_scorers(config: ScoreConfig) -> list[DeclaredScorer]:
    """Return all scorers of a config, the filter first; load no model. Raises ValueError for a wrong one."""
    scorers: list[tuple[str, Scorer]] = []
    if config.model is not None:
        filter_ = declare_filter(config.model, config.filter_settings())
        if config.from_vectors:
            filter_ = _declare_stored(filter_, config)
        scorers.append((config.model, SentenceScorer(filter_) if config.sentences else filter_))
    scorers += [(spec, _import_class(CLIP)(spec)) for spec in config.clips]
    scorers += [(spec, _declare_extra(spec, config)) for spec in config.scorers]
    if config.judge.model:
        kind = config.judge.model.partition(":")[0]
        scorers.append((config.judge.model, _import_class(JUDGES[kind])(config.judge)))
    declared: list[DeclaredScorer] = []
    used: set[str] = set()
    for spec, scorer in scorers:
        columns = []
        for column in scorer.columns:
            columns.append(_unused_name(column, used))
            used.add(columns[-1])
        declared.append(DeclaredScorer(scorer, tuple(columns), spec))
    return declared


def declare_filter(model: str, settings: FilterSettings) -> Scorer:
    """Return the scorer of a checkpoint with ITM and ITC heads."""
    kind, colon, name = model.partition(":")
    if colon and not Path(model).exists():
        if kind == "open_clip":
            raise ValueError(f"{model} is a CLIP model, which has no ITM head: give it as --clip beside a --model.")
        if kind in ("hf", "openai"):
            raise ValueError(
                f"{model} is the name of a captioner; a filter is a checkpoint with ITM and ITC heads, such as {name} "
                "alone if it is a BLIP-2 filter."
            )
        if re.fullmatch(r"[A-Za-z_]\w+", kind):
            raise ValueError(f"No file or folder at {model}; a filter is a checkpoint with ITM and ITC heads.")
    checkpoint = checkpoint_kind(model)
    if checkpoint not in FILTERS:
        raise ValueError(f"{describe_use(checkpoint, model).rstrip('.')}; it has no ITM head to filter with.")
    return _import_class(FILTERS[checkpoint])(model, settings)


def _declare_stored(filter_: Scorer, config: ScoreConfig) -> Scorer:
    """Return the scorer of stored vectors in place of a BLIP filter."""
    others: dict[str, Any] = {"clip": config.clips, "scorer": config.scorers, "judge": config.judge.model}
    others |= {"sentences": config.sentences, "vectors": config.vectors}
    given = [name for name, value in others.items() if value]
    if given:
        raise ValueError(f"from_vectors reads no picture, so leave out {given[0]}.")
    if filter_.name != "blip":
        raise ValueError(f"{config.model} is no BLIP filter; from_vectors scores with BLIP's text encoder.")
    return _import_class(STORED)(config.model, config.filter_settings())


def split_class(spec: str) -> tuple[str, str] | None:
    """Return module (or file) and class of `module:Class`; None for another spec, such as a path."""
    module, _, name = spec.rpartition(":")
    return (module, name) if module and name.isidentifier() and not Path(spec).exists() else None


def _declare_extra(spec: str, config: ScoreConfig) -> Scorer:
    """Return the scorer of `--scorer`: a captioner, a class of the user's own, or a further filter."""
    if spec.startswith("lm:"):
        model = spec.removeprefix("lm:")
        if not model or model.startswith(("hf:", "openai:")):
            raise ValueError(f"{spec} names no BLIP captioner; write lm:FOLDER, such as lm:runs/captioner/model.")
        if (kind := checkpoint_kind(model)) != "blip":
            raise ValueError(f"{describe_use(kind, model).rstrip('.')}; lm: takes a BLIP captioner.")
        return _import_class(LM)(model, config.data, config.lm_prompt, config.tokenizer, config.numerics)
    if spec.startswith("open_clip:"):
        raise ValueError(f"{spec} is a CLIP model: give it as --clip {spec}.")
    if spec.endswith(".py"):
        raise ValueError(f"{spec} is a file; name the class too, as {spec}:CLASS.")
    if split_class(spec) is None:
        return declare_filter(spec, replace(config.filter_settings(), vectors=False))
    cls = _import_class(spec)
    try:
        scorer = cls()
    except Exception as error:  # any error of the user's code
        raise ValueError(f"{spec} cannot be created without arguments ({one_line(error)}).") from error
    missing = [name for name in MEMBERS if getattr(cls, name, None) is None and not hasattr(scorer, name)]
    if missing or cls.score is Scorer.score:
        name = missing[0] if missing else "score"
        raise ValueError(f"{spec} is no scorer: it has no {name}; derive it from capfilt.filter.scorer.Scorer.")
    columns = scorer.columns
    if isinstance(columns, str) or not columns or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"columns of {spec} must be a tuple of names, such as ('sharpness',), not {columns!r}.")
    for name in columns:
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in RESERVED_COLUMNS or list(columns).count(name) > 1:
            raise ValueError(f"{spec} has the column {name!r}; a column is a single word, such as sharpness.")
    return scorer


def _import_class(spec: str) -> Any:
    """Return the class `module:Class` or `path/to/file.py:Class`; modules of the current folder are found too."""
    module_name, name = spec.rsplit(":", 1)
    try:
        module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    except Exception as error:  # any error of the user's code
        raise ValueError(
            f"The scorer {spec} cannot be imported ({type(error).__name__}: {one_line(error)})."
        ) from error
    if not isinstance(getattr(module, name, None), type):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        classes = [key for key in own if isinstance(vars(module)[key], type)]
        raise ValueError(f"{module_name} has no class {name!r}; its classes are {', '.join(classes) or 'none'}.")
    return getattr(module, name)


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    name = re.sub(r"\W", "_", str(path.resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    # `inspect` finds the source file of a class through this entry.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(Path.cwd()))


def _unused_name(column: str, used: set[str]) -> str:
    """Return the column's name, numbered if it is used already: clip, clip2, clip3, ..."""
    number = 1
    while (name := column if number == 1 else f"{column}{number}") in used:
        number += 1
    return name
