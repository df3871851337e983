"""Tiny random ALBEF and BLIP-2 models, in the files that their own code writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blipcore.torchvision_shim import import_transformers

WORDS = ["a", "picture", "of", "red", "green", "blue", "dog", "cat", "tree", "one", "two", "on", "the", "left", "##s"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
# Heads have 64 channels, as in all ALBEF models.
WIDTH, TEXT_WIDTH, HIDDEN, PATCH, SIDE, LAYERS, POSITIONS = 64, 128, 96, 8, 4, 4, 40


def write_vocab(folder: Path) -> Path:
    """Write the vocabulary of both models as vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return folder / "vocab.txt"


def albef_state(pretrained: bool, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of an ALBEF with four text layers, the upper two with cross-attention.

    A file of pre-training has `text_encoder.bert.*` and the MLM head, one of retrieval has `text_encoder.*`.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        state[name] = torch.randn(*shape, generator=generator) * 0.2

    def add_linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def add_norm(name: str, width: int) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)
        state[f"{name}.weight"] += 1

    add("visual_encoder.cls_token", 1, 1, WIDTH)
    add("visual_encoder.pos_embed", 1, SIDE * SIDE + 1, WIDTH)
    add("visual_encoder.patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    add("visual_encoder.patch_embed.proj.bias", WIDTH)
    for block in (f"visual_encoder.blocks.{index}" for index in range(2)):
        add_norm(f"{block}.norm1", WIDTH)
        add_linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        add_linear(f"{block}.attn.proj", WIDTH, WIDTH)
        add_norm(f"{block}.norm2", WIDTH)
        add_linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        add_linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    add_norm("visual_encoder.norm", WIDTH)
    bert = "text_encoder.bert" if pretrained else "text_encoder"
    state[f"{bert}.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    for table, rows in (("word", len(VOCAB)), ("position", POSITIONS), ("token_type", 2)):
        add(f"{bert}.embeddings.{table}_embeddings.weight", rows, TEXT_WIDTH)
    add_norm(f"{bert}.embeddings.LayerNorm", TEXT_WIDTH)
    for index in range(LAYERS):
        layer = f"{bert}.encoder.layer.{index}"
        for kind in ("attention", "crossattention")[: 1 + (index >= LAYERS // 2)]:
            inputs = WIDTH if kind == "crossattention" else TEXT_WIDTH
            add_linear(f"{layer}.{kind}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            add_linear(f"{layer}.{kind}.self.key", TEXT_WIDTH, inputs)
            add_linear(f"{layer}.{kind}.self.value", TEXT_WIDTH, inputs)
            add_linear(f"{layer}.{kind}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            add_norm(f"{layer}.{kind}.output.LayerNorm", TEXT_WIDTH)
        add_linear(f"{layer}.intermediate.dense", HIDDEN, TEXT_WIDTH)
        add_linear(f"{layer}.output.dense", TEXT_WIDTH, HIDDEN)
        add_norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    if pretrained:
        add("text_encoder.cls.predictions.bias", len(VOCAB))
        add_linear("text_encoder.cls.predictions.transform.dense", TEXT_WIDTH, TEXT_WIDTH)
        add_norm("text_encoder.cls.predictions.transform.LayerNorm", TEXT_WIDTH)
        add_linear("text_encoder.cls.predictions.decoder", len(VOCAB), TEXT_WIDTH)
    add_linear("vision_proj", 16, WIDTH)
    add_linear("text_proj", 16, TEXT_WIDTH)
    add_linear("itm_head", 2, TEXT_WIDTH)
    state["temp"] = torch.tensor(0.07)
    momentum = {}
    for name, tensor in state.items():
        group, _, rest = name.partition(".")
        if group in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
            momentum[f"{group}_m.{rest}"] = tensor.clone()
    queues = {"image_queue": torch.randn(16, 8), "text_queue": torch.randn(16, 8), "queue_ptr": torch.zeros(1)}
    return state | momentum | queues


def save_tiny_albef(folder: Path, pretrained: bool = True) -> tuple[Path, Path]:
    """Save a tiny ALBEF as `ALBEF.pth`; return its path and that of its vocab.txt."""
    vocab = write_vocab(folder)
    content = {"model": albef_state(pretrained), "optimizer": {"state": {}}, "config": {"image_res": 32}, "epoch": 1}
    torch.save(content, folder / "ALBEF.pth")
    return folder / "ALBEF.pth", vocab


def save_tiny_blip2(folder: Path, kind: str = "Blip2ForImageTextRetrieval") -> Path:
    """Save a tiny BLIP-2 filter, or another BLIP-2 class, with its processor and tokenizer."""
    transformers: Any = import_transformers()
    vocab = write_vocab(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = transformers.Blip2Config(
        vision_config=transformers.Blip2VisionConfig(**sizes, image_size=32, patch_size=8),
        qformer_config=transformers.Blip2QFormerConfig(
            **sizes, vocab_size=len(VOCAB), encoder_hidden_size=32, max_position_embeddings=POSITIONS,
            cross_attention_frequency=2, use_qformer_text_input=True,
        ),
        text_config=transformers.OPTConfig(
            vocab_size=len(VOCAB), hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=2,
            word_embed_proj_dim=32, max_position_embeddings=POSITIONS,
        ),
        num_query_tokens=4, image_text_hidden_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(str(vocab))
    tokenizer.save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
