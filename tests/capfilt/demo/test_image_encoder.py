import torch

from blipcore.checkpoints.start_from import load_image_encoder, read_image_encoder
from blipcore.model.vit import VisionTransformer
from capfilt.demo import art
from capfilt.demo.corpus import labelled_pictures
from capfilt.demo.image_encoder import SHIPPED, SHIPPED_NOUNS, VISION, train_image_encoder


def test_tokens_of_the_shipped_encoder_depend_on_their_quarter():
    """Tokens of quarters with the same noun are closer to each other than to those of another noun."""
    from blipcore.data.transforms import EvalTransform

    encoder = VisionTransformer(VISION).eval()
    load_image_encoder(encoder, read_image_encoder(str(SHIPPED)))
    assert len(art.nouns()) == SHIPPED_NOUNS
    transform, pictures, labels = EvalTransform(VISION.image_size), [], []
    for picture, quarters in labelled_pictures(seed=5, n=300, px=96):
        pictures.append(transform(picture))
        labels.append(quarters)
    labels = torch.tensor(labels)[..., 0]  # (pictures, 2, 2) nouns
    half = VISION.image_size // VISION.patch_size // 2
    with torch.no_grad():
        tokens = encoder(torch.stack(pictures))[:, 1:].unflatten(1, (2, half, 2, half)).mean((2, 4))
    two_nouns = (labels[:, 0, 0] != labels[:, 1, 1]).nonzero().flatten()
    assert len(two_nouns) > 100
    feats = torch.nn.functional.normalize(tokens[two_nouns, 0, 0], dim=1)
    gallery = torch.nn.functional.normalize(tokens[:, 1, 1], dim=1)  # the opposite corner of all pictures
    similarity = feats @ gallery.T
    similarity[torch.arange(len(two_nouns)), two_nouns] = -1
    correct = labels[:, 1, 1][similarity.argmax(1)] == labels[two_nouns, 0, 0]
    assert correct.float().mean() > 0.8


def test_training_writes_weights_that_load(tmp_path):
    train_image_encoder(tmp_path / "encoder.safetensors", nouns=4, steps=2, batch_size=4)
    load_image_encoder(VisionTransformer(VISION), read_image_encoder(str(tmp_path / "encoder.safetensors")))
