"""The three pre-training losses as in the official BLIP code, built from transformers' blocks.

These blocks have the official arithmetic: explicit attention, and new keys and values of cross-attention in each pass.
As in the official `blip_pretrain.py`, the forward pass updates the momentum encoders and queues and draws the negatives
one by one.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blipcore.checkpoints.names import to_official
from blipcore.model.blip import Blip
from blipcore.tasks.contrastive import MIN_NEGATIVE_WEIGHT
from blipcore.tasks.losses import IGNORE_INDEX, clamp_temperature, itc_loss, soft_targets
from blipcore.tasks.pretrain import PretrainConfig
from blipcore.tasks.task import Batch, Outputs, Progress, replace_first
from blipcore.torchvision_shim import heal_torchvision


class Official(nn.Module):
    """The official pre-training model, from transformers' blocks with the weights of `model`."""

    def __init__(self, model: Blip, config: PretrainConfig) -> None:
        super().__init__()
        heal_torchvision()
        import transformers

        sizes, text = model.config.vision, model.config.text
        vision_config = transformers.BlipVisionConfig(
            hidden_size=sizes.width,
            intermediate_size=int(sizes.width * sizes.mlp_ratio),
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            layer_norm_eps=sizes.eps,
        )
        text_config = transformers.BlipTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.width,
            encoder_hidden_size=text.encoder_width,
            intermediate_size=text.hidden,
            num_hidden_layers=text.depth,
            num_attention_heads=text.heads,
            max_position_embeddings=text.max_positions,
            hidden_dropout_prob=text.dropout,
            attention_probs_dropout_prob=text.dropout,
            layer_norm_eps=text.eps,
            label_smoothing=0.1,
            bos_token_id=text.vocab_size - 2,
        )
        self.config = config
        self.bos, self.enc = text.vocab_size - 2, text.vocab_size - 1
        self.vision_model = transformers.BlipVisionModel(vision_config)
        self.text_encoder = transformers.BlipTextModel(text_config, add_pooling_layer=False)
        self.text_decoder = transformers.BlipTextLMHeadModel(text_config)
        self.vision_proj = nn.Linear(sizes.width, model.config.embed_dim)
        self.text_proj = nn.Linear(text.width, model.config.embed_dim)
        self.itm_head = nn.Linear(text.width, 2)
        problems = self.load_state_dict(to_official(model.state_dict(), hf=True), strict=False)
        assert not problems.unexpected_keys and all("position_ids" in key for key in problems.missing_keys), problems
        self.temp = nn.Parameter(model.temp.detach().clone())
        self.tie()
        self.pairs = []
        for name in ("vision_model", "vision_proj", "text_encoder", "text_proj"):
            momentum = copy.deepcopy(getattr(self, name)).requires_grad_(False)
            self.add_module(f"{name}_m", momentum)
            self.pairs += list(zip(getattr(self, name).parameters(), momentum.parameters(), strict=True))
        width, size = model.config.embed_dim, config.queue_size
        self.register_buffer("image_queue", torch.empty(width, size))
        self.register_buffer("text_queue", torch.empty(width, size))
        self.pointer = 0

    def tie(self) -> None:
        """Share all but self-attention between the two text stacks, and the word embeddings with the LM head."""
        decoder = self.text_decoder.bert
        for name, parameter in list(decoder.named_parameters()):
            if ".attention." not in name:
                owner, _, leaf = name.rpartition(".")
                setattr(self.text_encoder.get_submodule(owner), leaf, parameter)
        head = self.text_decoder.cls.predictions
        head.decoder.weight, head.decoder.bias = decoder.embeddings.word_embeddings.weight, head.bias

    def before_step(self, progress: Progress) -> None:
        """Do nothing: the official forward pass updates the momentum encoders."""

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        pixels, ids, mask = batch["pixels"], batch["input_ids"], batch["attention_mask"]
        B = len(ids)
        clamp_temperature(self.temp)
        image = self.vision_model(pixels).last_hidden_state
        image_mask = torch.ones(image.shape[:-1], dtype=torch.long, device=image.device)
        image_feat = F.normalize(self.vision_proj(image[:, 0]).float(), dim=-1)
        hidden = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        text_feat = F.normalize(self.text_proj(hidden[:, 0]).float(), dim=-1)
        with torch.no_grad():
            for parameter, momentum in self.pairs:
                momentum.data = momentum.data * self.config.momentum + parameter.data * (1.0 - self.config.momentum)
            momentum_image = self.vision_model_m(pixels).last_hidden_state
            image_key = F.normalize(self.vision_proj_m(momentum_image[:, 0]).float(), dim=-1)
            momentum_hidden = self.text_encoder_m(ids, attention_mask=mask).last_hidden_state
            text_key = F.normalize(self.text_proj_m(momentum_hidden[:, 0]).float(), dim=-1)
        with torch.autocast(ids.device.type, enabled=False):
            image_keys = torch.cat([image_key.T, self.image_queue], dim=1)
            text_keys = torch.cat([text_key.T, self.text_queue], dim=1)
            with torch.no_grad():
                hard = torch.eye(B, image_keys.shape[1], device=ids.device)
                targets = [
                    soft_targets(key @ keys / self.temp, hard, self.config.alpha)
                    for key, keys in ((image_key, text_keys), (text_key, image_keys))
                ]
            i2t, t2i = image_feat @ text_keys / self.temp, text_feat @ image_keys / self.temp
        self.image_queue[:, self.pointer : self.pointer + B] = image_key.T
        self.text_queue[:, self.pointer : self.pointer + B] = text_key.T
        self.pointer = (self.pointer + B) % self.config.queue_size

        enc = replace_first(ids, self.enc)
        positive = self.text_encoder(
            enc, attention_mask=mask, encoder_hidden_states=image, encoder_attention_mask=image_mask
        ).last_hidden_state
        images, texts = self.draw_negatives(i2t[:, :B], t2i[:, :B])
        negative = self.text_encoder(
            torch.cat([enc, torch.stack([enc[i] for i in texts])]),
            attention_mask=torch.cat([mask, torch.stack([mask[i] for i in texts])]),
            encoder_hidden_states=torch.cat([torch.stack([image[i] for i in images]), image]),
            encoder_attention_mask=torch.cat([image_mask, image_mask]),
        ).last_hidden_state
        logits = self.itm_head(torch.cat([positive[:, 0], negative[:, 0]])).float()
        labels = torch.cat([torch.ones(B, dtype=torch.long), torch.zeros(2 * B, dtype=torch.long)]).to(ids.device)
        decoded = self.text_decoder(
            replace_first(ids, self.bos),
            attention_mask=mask,
            encoder_hidden_states=image,
            encoder_attention_mask=image_mask,
            labels=ids.masked_fill(mask == 0, IGNORE_INDEX),
        )
        out = {
            "loss_itc": itc_loss(i2t, t2i, *targets),
            "loss_itm": F.cross_entropy(logits, labels),
            "loss_lm": decoded.loss,
        }
        return out | {"loss": sum(out.values())}

    @torch.no_grad()
    def draw_negatives(self, i2t: Tensor, t2i: Tensor) -> list[list[int]]:
        """Draw a negative image per text and a negative text per image, one after the other."""
        weights = [(logits.softmax(1) + MIN_NEGATIVE_WEIGHT).fill_diagonal_(0) for logits in (t2i, i2t)]
        return [[int(torch.multinomial(row, 1).item()) for row in rows] for rows in weights]

    def after_step(self, outputs: list[Outputs]) -> None:
        """Do nothing: the official forward pass updates the queues."""
