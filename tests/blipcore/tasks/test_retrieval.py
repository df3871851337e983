"""Retrieval on tiny random models: targets, evaluation against its definition, and the memory of evaluation."""

import random
import weakref

import pytest
import torch
from PIL import Image
from tiny_tasks import START, WORDS, caption_samples

from blipcore.data.eval_batches import EvalBatches
from blipcore.data.transforms import EvalTransform
from blipcore.metrics.ranking import retrieval_ranks, retrieval_recall
from blipcore.tasks.retrieval import RetrievalConfig, RetrievalTask, evaluate_retrieval, match_pairs, shortlist
from blipcore.tasks.task import replace_first

PICTURES = 14


def test_texts_of_one_image_share_the_target(model, tokenizer) -> None:
    task = RetrievalTask(model.select_parts("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=4))
    batch = task.collate(caption_samples(ids=[7, 8, 9, 7]))
    targets = task.hard_targets(batch)
    torch.testing.assert_close(targets[0, :4], torch.tensor([0.5, 0, 0, 0.5]))
    task.after_step([task(batch, START)])
    assert task.idx_queue.tolist() == [[7, 8, 9, 7]]
    torch.testing.assert_close(task.hard_targets(batch)[0], torch.tensor([0.25, 0, 0, 0.25, 0.25, 0, 0, 0.25]))


def test_texts_of_the_same_image_are_no_negatives(model, tokenizer) -> None:
    task = RetrievalTask(model.select_parts("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=4))
    batch = task.collate(caption_samples(ids=[7, 8, 9, 7]))
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = True
    assert torch.equal(task.excluded_negatives(batch, batch), expected)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures with one to five texts of one to ten words."""
    rng, records = random.Random(0), []
    for i in range(PICTURES):
        path = tmp_path_factory.mktemp("pictures") / f"{i}.png"
        Image.new("RGB", (16, 16), tuple(rng.randrange(256) for _ in range(3))).save(path)
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 10))) for _ in range(1 + i % 5)]
        records.append({"key": f"{i}.png", "image": path, "texts": texts, "image_id": i})
    return EvalBatches(records, EvalTransform(16), batch_size=4)


@pytest.fixture(scope="module")
def scores(filter_model, tokenizer, pictures):
    """Cosines (I, T) and ITM logits (I, T, 2) of all pairs, one text at a time, and the picture (T,) of each text."""
    cosine, itm, owner = [], [], []
    model = filter_model
    with torch.inference_mode():
        embeds = model.encode_image(torch.cat([pixels for _, pixels in pictures]))
        kv, image_feat = model.text.image_kv(embeds), model.image_feat(embeds)
        for i, record in enumerate(pictures.records):
            for text in record["texts"]:
                ids, mask = tokenizer([text] * PICTURES, max_length=35)
                cosine.append((image_feat * model.text_feat(model.text.encode(ids, mask))).sum(1))
                itm.append(model.itm_logits(model.text.fuse(replace_first(ids, tokenizer.enc), mask, kv)))
                owner.append(i)
    return torch.stack(cosine, 1), torch.stack(itm, 1), torch.tensor(owner)


@pytest.mark.parametrize(("k", "rows"), [(1, 7), (3, 64), (6, 1), (128, 512)])
def test_recall_equals_its_definition(filter_model, tokenizer, pictures, scores, k, rows) -> None:
    """The official way: a matrix of every pair at -100, the shortlists of rows and columns filled in."""
    cosine, itm, owner = scores
    right = owner[None] == torch.arange(PICTURES)[:, None]
    temperature = float(filter_model.temp.detach())
    expected = {}
    for name, logit, scale in (("", itm[..., 1], 1.0), ("sum_", itm[..., 1] - itm[..., 0], temperature)):
        i2t, t2i = torch.full_like(cosine, -1000.0), torch.full_like(cosine.T, -1000.0)
        for matrix, similar, by_query in ((i2t, cosine, logit), (t2i, cosine.T, logit.T)):
            for query in range(len(matrix)):
                best = similar[query].argsort(descending=True)[:k]
                matrix[query, best] = by_query[query, best] + similar[query, best] / scale
        recall = retrieval_recall(retrieval_ranks(i2t, right), retrieval_ranks(t2i, right.T))
        expected |= {name + key: value for key, value in recall.items()}
    plain = retrieval_recall(retrieval_ranks(cosine, right), retrieval_ranks(cosine.T, right.T))
    recall, _ = evaluate_retrieval(filter_model, tokenizer, pictures, k=k, rows=rows)
    assert recall == expected | {f"itc_{name}": value for name, value in plain.items()}


def test_an_equal_text_of_another_picture_counts_apart_from_the_published_recall(
    filter_model, tokenizer, pictures
) -> None:
    """All pictures share one text and have one of their own: with the shared one, everything is found."""
    shared = [record | {"texts": ["red"]} for record in pictures.records]
    recall, _ = evaluate_retrieval(filter_model, tokenizer, EvalBatches(shared, pictures.transform, batch_size=4))
    assert recall["shared_texts"] == PICTURES and recall["i2t_r@1"] == 0.0
    assert recall["same_text_mean_recall"] == recall["same_text_i2t_r@1"] == recall["same_text_t2i_r@1"] == 100.0

    mixed = [record | {"texts": [f"{WORDS[i % len(WORDS)]} {i}", "Red!"]} for i, record in enumerate(pictures.records)]
    recall, _ = evaluate_retrieval(filter_model, tokenizer, EvalBatches(mixed, pictures.transform, batch_size=4))
    assert recall["shared_texts"] == PICTURES and recall["same_text_t2i_r@1"] >= 50.0
    assert all(recall[f"same_text_{name}"] >= recall[name] for name in ("i2t_r@1", "t2i_r@1", "mean_recall"))

    without, _ = evaluate_retrieval(filter_model, tokenizer, pictures)
    assert not any("same_text" in name or name == "shared_texts" for name in without)


@pytest.mark.parametrize("rows", [1, 5, 64, 1000])
def test_pairs_scored_together_have_the_scores_of_single_pairs(filter_model, tokenizer, pictures, scores, rows) -> None:
    texts = [text for record in pictures.records for text in record["texts"]]
    ids, mask = tokenizer(texts, max_length=35, first="enc")
    _, pixels = next(iter(pictures))
    rng = random.Random(rows)
    for share in (0.05, 0.4, 1.0):
        pairs = [(i, t) for i in range(len(pixels)) for t in range(len(texts)) if rng.random() < share]
        image, text = torch.tensor(pairs).T
        with torch.inference_mode():
            logits = match_pairs(filter_model, pixels, ids, mask, image, text, rows)
        torch.testing.assert_close(logits, scores[1][image, text], atol=2e-5, rtol=1e-4)


def test_a_shortlist_has_the_keys_of_highest_cosine() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(30, 8), torch.randn(17, 8)
    of_query, of_key = torch.randint(0, 9, (30,)), torch.randint(0, 9, (17,))
    best, ranks = shortlist(queries, keys, 5, of_query, of_key, rows=4)
    cosine = queries @ keys.T
    assert torch.equal(best, cosine.topk(5).indices)
    assert torch.equal(ranks, retrieval_ranks(cosine, of_query[:, None] == of_key[None]))
    assert shortlist(queries, keys, 99, of_query, of_key)[0].shape == (30, 17)


def test_the_tokens_of_one_batch_are_in_memory_at_a_time(filter_model, tokenizer, pictures, monkeypatch) -> None:
    """The official evaluation keeps the tokens of all pictures: 8.9 GB on COCO's test set, at 384 pixels."""
    model = filter_model
    tensors: list[weakref.ref] = []
    sizes = []

    def watch(function):
        def watched(value):
            result = function(value)
            tensors.extend(map(weakref.ref, getattr(result, "layers", [result])))
            sizes.append(sum(len(ref().flatten()) // ref().shape[-1] for ref in tensors if ref() is not None))
            return result

        return watched

    tokens = 1 + (16 // model.config.vision.patch_size) ** 2
    monkeypatch.setattr(model, "encode_image", watch(model.encode_image))
    monkeypatch.setattr(model.text, "image_kv", watch(model.text.image_kv))
    evaluate_retrieval(model, tokenizer, pictures)
    vectors = 1 + model.config.text.depth * 2 * model.config.text.heads  # of a token: its state, keys and values
    assert len(sizes) == 3 * 4 and 0 < max(sizes) <= pictures.batch_size * tokens * vectors


def judged(texts, matches, image=None):
    return {"image": torch.zeros(3, 16, 16) if image is None else image, "texts": texts, "matches": matches}


def test_judged_texts_add_a_loss_and_leave_the_others_unchanged(model, tokenizer) -> None:
    task = RetrievalTask(model.select_parts("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=4)).eval()
    samples = caption_samples(ids=[7, 8, 9, 7])
    torch.manual_seed(0)
    without = task(task.collate(samples), START)
    samples[1]["judged"] = judged(WORDS[:2], [True, False])
    samples[3]["judged"] = judged(WORDS[2:3], [False], samples[0]["image"])
    torch.manual_seed(0)
    batch = task.collate(samples)
    out = task(batch, START)
    assert batch["judged_match"].tolist() == [1, 0, 0]
    assert batch["judged_picture"].tolist() == [0, 0, 1]
    assert "loss_judged" not in without
    assert torch.equal(out["loss_itc"], without["loss_itc"])
    assert torch.equal(out["loss_itm"], without["loss_itm"])
    torch.testing.assert_close(out["loss"], without["loss"] + out["loss_judged"])


def test_the_judged_loss_is_cross_entropy_with_the_given_targets(model, tokenizer) -> None:
    task = RetrievalTask(model.select_parts("encode", "itc", "itm"), tokenizer, RetrievalConfig(queue_size=4)).eval()
    samples = caption_samples(ids=[7, 8, 9, 7])
    samples[0]["judged"] = judged(WORDS[:2], [True, False], samples[1]["image"])
    batch = task.collate(samples)
    expected = 0.0
    for row, match in enumerate([1, 0]):
        kv = task.model.text.image_kv(task.model.encode_image(samples[1]["image"][None]))
        ids, mask = tokenizer([WORDS[row]], max_length=35)
        logits = task.model.itm_logits(task.model.text.fuse(replace_first(ids, tokenizer.enc), mask, kv))
        expected -= float(logits.detach().log_softmax(1)[0, match]) / 2
    assert float(task.compute_judged(batch).detach()) == pytest.approx(expected, rel=1e-5)
