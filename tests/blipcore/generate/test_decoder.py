"""The decoder reads texts step by step with the results of a single pass."""

import torch
from random_captioner import decode_uncached, random_captioner, random_images

from blipcore.generate.decoder import Decoder

TEXTS = [[7, 8, 9, 10, 11], [7, 8, 12, 13, 14], [7, 8, 15, 16, 17]]


@torch.inference_mode()
def test_prefill_and_steps_equal_one_pass_over_the_text() -> None:
    model, images = random_captioner(), random_images(3)
    decoder, ids = Decoder(model.text, model.text.image_kv(images), length=5), torch.tensor(TEXTS)
    logits = [decoder.prefill(ids[:, :2]), *(decoder.step(ids[:, i : i + 1]) for i in range(2, 5))]
    for row, text in enumerate(TEXTS):
        expected = decode_uncached(model, images[row], text)[1:]
        torch.testing.assert_close(torch.stack([step[row] for step in logits]), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_can_be_reordered_and_images_dropped() -> None:
    model, images = random_captioner(), random_images(3)
    decoder = Decoder(model.text, model.text.image_kv(images), length=5)
    decoder.prefill(torch.tensor(TEXTS)[:, :4])
    decoder.select(torch.tensor([2, 0]), torch.tensor([2, 0]))
    logits = decoder.step(torch.tensor([[17], [11]]))
    for row, image in enumerate((2, 0)):
        expected = decode_uncached(model, images[image], TEXTS[image])[-1]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


def test_finished_images_are_dropped_once_they_are_a_quarter_of_the_batch() -> None:
    model = random_captioner()
    decoder = Decoder(model.text, model.text.image_kv(random_images(8)), length=5)
    assert [decoder.should_drop_finished(remaining) for remaining in (8, 7, 6, 1)] == [False, False, True, True]
