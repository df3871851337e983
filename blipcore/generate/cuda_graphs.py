"""Runs decoder steps as CUDA graphs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blipcore.generate.decoder import Decoding, _next
from blipcore.model.attention import ImageKV, KVCache
from blipcore.model.text import TextTransformer


def decoding(text: TextTransformer, kv: ImageKV, length: int) -> Decoding:
    """How `text` decodes here. Question states (`kv.mask`) are of another length in every batch: nothing to replay."""
    if text.steps is None or kv.mask is not None:
        return Decoding(text, kv, length)
    return Replayed(text, kv, length)


class Replayed(Decoding):
    """A batch whose steps, but for the prompt, are replayed."""

    def __init__(self, text: TextTransformer, kv: ImageKV, length: int) -> None:
        self.steps: Steps = text.steps
        self.images = self.steps.take_images(kv)  # where the steps read them; so is `kv` until some are dropped
        self.places: Tensor | None = None  # likewise of the cache
        super().__init__(text, self.images, length)

    def read(self, ids: Tensor) -> Tensor:
        if self.cache is None:
            return super().read(ids)
        if self.kv is not self.images:
            self.kv = self.images = self.steps.take_images(self.kv)
        if self.cache.data is not self.places:
            self.cache.data = self.places = self.steps.take_cache(self.cache, len(self.kv))
        logits = self.steps.run(self.text, ids, self.cache.length, len(self.kv))
        self.cache.length += 1
        return logits

    def worth_dropping(self, left: int) -> bool:
        return self.steps.size(left) < self.steps.size(len(self.kv))


class Steps:
    """The recorded steps of one decoder on one GPU, kept from batch to batch with the memory that they work on.

    A recorded step finds its tokens, their place, the images and the cache where they lay when it was recorded, so each
    batch is copied there. It is recorded for a number of pictures; with fewer, its last rows are idle.
    """

    MET = 16  # steps of a size, about a batch, before it is recorded, which takes as long as several
    APART = 0.02  # of the largest logit: replayed logits may round otherwise, by another choice of kernels

    def __init__(self) -> None:
        self.usable = True
        self.forget()

    def forget(self) -> None:
        """Give up what is recorded, and its memory."""
        self.kv: ImageKV | None = None
        self.data: Tensor | None = None  # of the cache
        self.recorded: dict[int, Recorded] = {}  # by its number of pictures
        self.met: Counter[int] = Counter()

    def size(self, pictures: int) -> int:
        """Of how many pictures the step is that does for so many: 1, 2, 3, 4, 6, 8, 12, ... or as many as fit."""
        power = 1 << (pictures - 1).bit_length()
        three_quarters = 3 * power // 4
        return min(three_quarters if power > 2 and pictures <= three_quarters else power, len(self.kv))

    def take_images(self, kv: ImageKV) -> ImageKV:
        """Copy the images of a batch to where the steps read them; where they do not fit, begin anew."""
        if self.kv is None or len(kv) > len(self.kv) or _layout(kv) != _layout(self.kv):
            self.forget()
            self.kv = ImageKV(kv.each(torch.empty_like))
        mine = self.kv.first(len(kv))
        for own, given in {id(own): (own, given) for own, given in zip(mine.layers, kv.layers, strict=True)}.values():
            own.copy_(given)
        return mine

    def take_cache(self, cache: KVCache, pictures: int) -> Tensor:
        """Copy the cache of a batch of `pictures` to where the steps use it; returns that place."""
        depth, two, rows, *rest = cache.data.shape
        shape = (depth, two, rows // pictures * len(self.kv), *rest)
        if self.data is None or self.data.shape != shape:
            self.recorded, self.met = {}, Counter()
            # Numbers everywhere: what is not written yet counts 0 times, and 0 times NaN would be NaN.
            self.data = cache.data.new_zeros(shape)
            self.ids = torch.zeros(shape[2], 1, dtype=torch.int64, device=self.data.device)
            self.at = torch.zeros(1, dtype=torch.int64, device=self.data.device)
        mine = self.data[:, :, :rows]
        mine[..., : cache.length, :] = cache.data[..., : cache.length, :]
        return mine

    def run(self, text: TextTransformer, ids: Tensor, at: int, pictures: int) -> Tensor:
        """Logits (R, V) after `ids` (R, 1), the tokens number `at` of the texts of so many pictures."""
        self.ids[: len(ids)] = ids
        self.at.fill_(at)
        size = self.size(pictures)
        if size not in self.recorded and self.usable:
            self.met[size] += 1
            if self.met[size] > self.MET:
                self._record(text, size)
        if size not in self.recorded:
            return self._step(text, pictures)
        step = self.recorded[size]
        step.replay()
        return step.logits[: len(ids)]

    def _step(self, text: TextTransformer, pictures: int) -> Tensor:
        rows = self.data.shape[2] // len(self.kv) * pictures
        return _next(text, self.ids[:rows], self.kv.first(pictures), KVCache(self.data[:, :, :rows], at=self.at))

    def _record(self, text: TextTransformer, size: int) -> None:
        """Record the step of a size, and use it if it gives what the step itself gives: else no more is recorded."""
        step = partial(self._step, text, size)
        try:
            beside = next(iter(self.recorded.values()), None)
            recorded, expected = record(step, self.data.device, beside), step()
            recorded.replay()
            apart = (recorded.logits - expected).abs().max() / expected.abs().max()
            if not apart <= self.APART:
                raise RuntimeError(f"its logits are {apart:.3f} of the largest apart")
            self.recorded[size] = recorded
        except torch.OutOfMemoryError:
            self.forget()
            raise
        except RuntimeError as error:
            self.usable, self.recorded = False, {}
            why = f"Decoding goes on without CUDA graphs, slower: a replayed step failed ({error})."
            warnings.warn(why, stacklevel=2)


def _layout(kv: ImageKV) -> list[tuple]:
    return [(layer.dtype, layer.shape[0], *layer.shape[2:]) for layer in kv.layers]


class Recorded(NamedTuple):
    """A recorded step: after `replay` its result lies in `logits`."""

    replay: Callable[[], None]
    logits: Tensor
    memory: Any = None  # torch's pool and the stream it is for; steps that never run at the same time share one


def record(step: Callable[[], Tensor], device: torch.device, beside: Recorded | None) -> Recorded:
    """Record what `step` has a GPU do, in the memory of the one `beside`; as torch's notes say, it is tried first."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):  # also after an error
        here = torch.cuda.current_stream()
        pool, aside = beside.memory if beside else (None, torch.cuda.Stream())
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            step()
        here.wait_stream(aside)
        # Threads that read pictures ahead may ask CUDA for pinned memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            logits = step()
    return Recorded(graph.replay, logits, (graph.pool(), aside))
