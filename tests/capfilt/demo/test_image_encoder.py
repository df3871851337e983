import torch

from blipcore.model.starts import load_image_encoder
from blipcore.model.vit import VisionTransformer
from capfilt.demo import art
from capfilt.demo.corpus import single_objects
from capfilt.demo.image_encoder import SHIPPED, SHIPPED_NOUNS, VISION, train


def test_the_shipped_encoder_tells_nouns_apart():
    """Pictures of one noun lie closer to each other than to those of another, without any classifier."""
    from blipcore.data.transforms import eval_transform

    encoder = VisionTransformer(VISION).eval()
    load_image_encoder(encoder, SHIPPED)
    assert len(art.nouns()) == SHIPPED_NOUNS
    transform, pictures, classes = eval_transform(VISION.image_size), [], []
    for picture, noun in single_objects(seed=5, n=200, px=96):
        pictures.append(transform(picture))
        classes.append(noun)
    with torch.no_grad():
        feats = torch.nn.functional.normalize(encoder(torch.stack(pictures))[:, 0], dim=1)
    similarity = (feats @ feats.T).fill_diagonal_(-1)
    classes = torch.tensor(classes)
    nearest = classes[similarity.argmax(1)]
    has_twin = (classes[:, None] == classes).sum(1) > 1
    assert (nearest == classes)[has_twin].float().mean() > 0.9


def test_training_writes_weights_that_load(tmp_path):
    train(tmp_path / "encoder.safetensors", nouns=4, steps=2, batch_size=4)
    load_image_encoder(VisionTransformer(VISION), tmp_path / "encoder.safetensors")
