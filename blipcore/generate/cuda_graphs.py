"""Replays decoding steps as CUDA graphs. Experimental and off by default: no GPU run has shown a gain yet.

A decoding step is some three hundred small operations, each faster on a GPU than Python starts the next. A recorded
step has no such overhead. To switch it on, create one `CudaGraphs` per model and pass it to `generate`:

    graphs = CudaGraphs()
    for batch in batches:
        generate(model, model.encode_image(batch), tokenizer, config, keys, graphs=graphs)

`decoder` has the plain version of a step.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blipcore.generate.decoder import Decoder, next_logits
from blipcore.model.attention import ImageKV, KVCache
from blipcore.model.text import TextTransformer


class StaticCache(KVCache):
    """A cache at a fixed address whose filled length is a tensor, so every step has the same operations.

    A mask over all of `data` replaces `length`.
    """

    def __init__(self, data: Tensor, position: Tensor) -> None:
        """Use `data` as the cache; `position` (1,) is that of the next token."""
        super().__init__(data)
        self.position = position

    def positions(self, new: int) -> Tensor:
        return self.position

    def allowed(self, new: int) -> Tensor:
        return torch.arange(self.data.shape[4], device=self.data.device)[None] <= self.position

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.data[layer].index_copy_(3, self.position, torch.stack([k, v]))
        return self.data[layer, 0], self.data[layer, 1]

    def advance(self, new: int) -> None:
        """Do nothing: the caller sets `position`."""


class CudaGraphs:
    """Recorded decoding steps of one model on one GPU, with their memory, for all batches.

    A recorded step reads tokens, position, images and cache from fixed addresses, to which each batch is copied. It is
    recorded for a number of images; with fewer images its last rows are idle.
    """

    # Steps of one size before it is recorded (about one batch): recording takes as long as several steps.
    STEPS_BEFORE_RECORDING = 16
    # Tolerated difference of replayed logits, as a share of the largest logit: kernels round differently.
    TOLERANCE = 0.02

    def __init__(self) -> None:
        self.usable = True
        self.ids: Tensor  # (R, 1), set with `cache`
        self.clear()

    def decoder(self, text: TextTransformer, kv: ImageKV, length: int) -> Decoder:
        """Return a decoder that replays its steps, or a plain one for question states, whose length varies."""
        if kv.mask is not None:
            return Decoder(text, kv, length)
        return GraphDecoder(self, text, kv, length)

    def clear(self) -> None:
        """Drop all recordings and free their memory."""
        self.kv: ImageKV | None = None
        self.cache: StaticCache | None = None
        self.recorded: dict[int, RecordedStep] = {}  # by number of images
        self.step_counts: Counter[int] = Counter()

    def size(self, images: int) -> int:
        """Return the recorded size for a number of images: the next of 1, 2, 3, 4, 6, 8, 12, ... or the maximum."""
        assert self.kv is not None
        power = 1 << (images - 1).bit_length()
        three_quarters = 3 * power // 4
        return min(three_quarters if power > 2 and images <= three_quarters else power, len(self.kv))

    def copy_images(self, kv: ImageKV) -> ImageKV:
        """Copy the images of a batch to their fixed address; return that view. A larger batch drops all recordings."""
        if self.kv is None or len(kv) > len(self.kv) or _layout(kv) != _layout(self.kv):
            self.clear()
            self.kv = ImageKV(kv.map_layers(torch.empty_like))
        view = self.kv.first(len(kv))
        copied: set[int] = set()
        for target, source in zip(view.layers, kv.layers, strict=True):
            if id(target) not in copied:
                target.copy_(source)
                copied.add(id(target))
        return view

    def copy_cache(self, cache: KVCache, images: int) -> Tensor:
        """Copy the cache of a batch of this many images to its fixed address; return that view."""
        assert self.kv is not None
        depth, two, rows, *rest = cache.data.shape
        shape = (depth, two, rows // images * len(self.kv), *rest)
        if self.cache is None or self.cache.data.shape != shape:
            self.recorded, self.step_counts = {}, Counter()
            # Zeros, not uninitialised memory: masked entries count 0 times, and 0 times NaN is NaN.
            data = cache.data.new_zeros(shape)
            self.cache = StaticCache(data, torch.zeros(1, dtype=torch.int64, device=data.device))
            self.ids = torch.zeros(shape[2], 1, dtype=torch.int64, device=data.device)
        view = self.cache.data[:, :, :rows]
        view[..., : cache.length, :] = cache.data[..., : cache.length, :]
        return view

    def run(self, text: TextTransformer, ids: Tensor, position: int, images: int) -> Tensor:
        """Return logits (R, V) after tokens `ids` (R, 1) at `position` of the texts of this many images."""
        assert self.cache is not None
        self.ids[: len(ids)] = ids
        self.cache.position.fill_(position)
        size = self.size(images)
        if size not in self.recorded and self.usable:
            self.step_counts[size] += 1
            if self.step_counts[size] > self.STEPS_BEFORE_RECORDING:
                self._record(text, size)
        if size not in self.recorded:
            return self._step(text, images)
        step = self.recorded[size]
        step.replay()
        return step.logits[: len(ids)]

    def _step(self, text: TextTransformer, images: int) -> Tensor:
        assert self.kv is not None and self.cache is not None
        rows = self.cache.data.shape[2] // len(self.kv) * images
        cache = StaticCache(self.cache.data[:, :, :rows], self.cache.position)
        return next_logits(text, self.ids[:rows], self.kv.first(images), cache)

    def _record(self, text: TextTransformer, size: int) -> None:
        """Record the step of this size. If its replay differs from the step, warn and stop recording."""
        assert self.cache is not None
        step = partial(self._step, text, size)
        try:
            sibling = next(iter(self.recorded.values()), None)
            recorded = record_step(step, self.cache.data.device, sibling)
            expected = step()
            recorded.replay()
            difference = (recorded.logits - expected).abs().max() / expected.abs().max()
            # `not <=` also catches NaN.
            if not difference <= self.TOLERANCE:
                raise RuntimeError(f"its logits differ by {difference:.3f} of the largest")
            self.recorded[size] = recorded
        except torch.OutOfMemoryError:
            self.clear()
            raise
        except RuntimeError as error:
            self.usable, self.recorded = False, {}
            message = f"Decoding continues without CUDA graphs, slower: a replayed step failed ({error})."
            warnings.warn(message, stacklevel=2)


class GraphDecoder(Decoder):
    """A decoder whose steps after the prompt are replayed."""

    def __init__(self, graphs: CudaGraphs, text: TextTransformer, kv: ImageKV, length: int) -> None:
        self.graphs = graphs
        # Views at fixed addresses. `select` replaces `kv` and `cache.data`, which `step` then copies back there.
        self.image_view = graphs.copy_images(kv)
        self.cache_view: Tensor | None = None
        super().__init__(text, self.image_view, length)

    def step(self, ids: Tensor) -> Tensor:
        if self.kv is not self.image_view:
            self.kv = self.image_view = self.graphs.copy_images(self.kv)
        if self.cache.data is not self.cache_view:
            self.cache.data = self.cache_view = self.graphs.copy_cache(self.cache, len(self.kv))
        logits = self.graphs.run(self.text, ids, self.cache.length, len(self.kv))
        self.cache.advance(1)
        return logits

    def should_drop_finished(self, remaining: int) -> bool:
        return self.graphs.size(remaining) < self.graphs.size(len(self.kv))


def _layout(kv: ImageKV) -> list[tuple[Any, ...]]:
    return [(layer.dtype, layer.shape[0], *layer.shape[2:]) for layer in kv.layers]


class RecordedStep(NamedTuple):
    """A recorded step, whose result is in `logits` after `replay`."""

    replay: Callable[[], None]
    logits: Tensor
    # torch's memory pool and stream, which steps share that never run at the same time
    memory: Any = None


def record_step(step: Callable[[], Tensor], device: torch.device, sibling: RecordedStep | None) -> RecordedStep:
    """Record the GPU operations of `step`, in the memory of `sibling` if given.

    Runs `step` first, on the same side stream, as torch's notes on CUDA graphs require.
    """
    graph = torch.cuda.CUDAGraph()
    # Restores device and stream, also after an error.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        main_stream = torch.cuda.current_stream()
        pool, side_stream = sibling.memory if sibling else (None, torch.cuda.Stream())
        side_stream.wait_stream(main_stream)
        with torch.cuda.stream(side_stream):
            step()
        main_stream.wait_stream(side_stream)
        # thread_local: threads that read images ahead may ask CUDA for pinned memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=side_stream, capture_error_mode="thread_local"):
            logits = step()
    return RecordedStep(graph.replay, logits, (graph.pool(), side_stream))
