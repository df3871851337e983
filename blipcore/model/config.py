"""Model sizes: configs of the image encoder, the text transformer and BLIP, and the presets tiny, base and large.

Imports no torch, so the command line checks a config quickly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

# Larger numbers in a config.json are damage; such a model would exhaust memory.
MAX_COUNT = {"depth": 1 << 10, "heads": 1 << 10}
MAX_WIDTH = 1 << 24


def require_sizes(config: object, *names: str) -> None:
    """Raise ValueError unless the fields `names` are positive integers within their maximum."""
    for name in names:
        size, maximum = getattr(config, name), MAX_COUNT.get(name, MAX_WIDTH)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {size!r}.")
        if size > maximum:
            raise ValueError(f"{name} must be at most {maximum}, not {size}.")


def require_numbers(config: object, maximum: float, *names: str) -> None:
    """Raise ValueError unless the fields `names` are numbers from 0 to `maximum`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= maximum:
            raise ValueError(f"{name} must be a number from 0 to {maximum:g}, not {value!r}.")


@dataclass
class VisionConfig:
    """Sizes of the image encoder. The defaults are ViT-B/16 at 224 pixels."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    # Stochastic depth: the rate grows linearly from 0 in the first block to this value in the last.
    drop_path: float = 0.0
    eps: float = 1e-6
    # A LayerNorm before the first block, as in CLIP's image encoders.
    pre_norm: bool = False
    # OpenAI's CLIP uses quick_gelu.
    activation: Literal["gelu", "quick_gelu"] = "gelu"

    def __post_init__(self) -> None:
        require_sizes(self, "image_size", "patch_size", "width", "depth", "heads")
        require_numbers(self, 1, "drop_path", "eps")
        require_numbers(self, 1 << 10, "mlp_ratio")
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"The vision activation must be 'gelu' or 'quick_gelu', not {self.activation!r}.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")
        if self.width % self.heads:
            raise ValueError(f"The vision width {self.width} is not a multiple of its {self.heads} heads.")


Share = Literal["all", "all-but-sa", "all-but-ca", "none"]


@dataclass
class TextConfig:
    """Sizes of the text transformer. The defaults are BERT-base with BLIP's two extra tokens."""

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    # Width of the states that cross-attention reads: the image encoder's.
    encoder_width: int = 768
    dropout: float = 0.1
    eps: float = 1e-12
    roles: tuple[str, ...] = ("encode", "decode")
    # Parameters shared by encoder and decoder (paper table 3; SA, CA: self- and cross-attention).
    share: Share = "all-but-sa"
    # NLVR2: the first layer that merges its two cross-attentions instead of averaging them.
    merge_from: int | None = None

    def __post_init__(self) -> None:
        require_sizes(self, "vocab_size", "width", "depth", "heads", "hidden", "max_positions", "encoder_width")
        self.roles = tuple(self.roles)
        if not self.roles or set(self.roles) - {"encode", "decode"}:
            raise ValueError(f"The text roles must be 'encode' and 'decode' or one of them, not {self.roles}.")
        if self.share not in get_args(Share):
            raise ValueError(f"share must be one of {', '.join(get_args(Share))}, not {self.share!r}.")
        if self.width % self.heads:
            raise ValueError(f"The text width {self.width} is not a multiple of its {self.heads} heads.")


HEADS = ("itc", "itm", "vqa", "nlvr")


@dataclass
class BlipConfig:
    """Sizes and parts of a BLIP model."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    # Width of the joint ITC space.
    embed_dim: int = 256
    heads: tuple[str, ...] = ("itc", "itm")

    def __post_init__(self) -> None:
        require_sizes(self, "embed_dim")
        require_numbers(self.text, 1, "dropout", "eps")
        self.heads = tuple(self.heads)
        if set(self.heads) - set(HEADS):
            raise ValueError(f"The heads must be among {', '.join(HEADS)}, not {', '.join(self.heads)}.")
        if self.heads and "encode" not in self.text.roles:
            raise ValueError("All heads need the text role 'encode'.")
        if ("nlvr" in self.heads) != (self.text.merge_from is not None):
            raise ValueError("text.merge_from must be set for the head 'nlvr', and only for it.")
        if self.text.merge_from is not None:
            require_numbers(self.text, self.text.depth, "merge_from")
        if self.text.encoder_width != self.vision.width:
            raise ValueError(
                f"text.encoder_width {self.text.encoder_width} must equal vision.width {self.vision.width}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BlipConfig:
        """Build a config from the result of `to_dict`. Raises ValueError for an unknown key."""
        parts = {"vision": VisionConfig, "text": TextConfig}
        for section, part in [("", cls), *parts.items()]:
            known = {f.name for f in fields(part)}
            unknown = set(values.get(section, {}) if section else values) - known
            if unknown:
                raise ValueError(f"Unknown model config keys {sorted(unknown)}; the known ones are {sorted(known)}.")
        return cls(**{name: parts[name](**value) if name in parts else value for name, value in values.items()})

    def select_parts(self, *parts: str) -> BlipConfig:
        """Return the same sizes with only these roles and heads (encode, decode, itc, itm, vqa, nlvr)."""
        roles = tuple(role for role in ("encode", "decode") if role in parts)
        heads = tuple(head for head in HEADS if head in parts)
        merge_from = None
        if "nlvr" in heads:
            # The upper half merges: layers 6 to 11 of BERT-base, as in the official models/nlvr_encoder.py.
            merge_from = self.text.depth // 2 if self.text.merge_from is None else self.text.merge_from
        return replace(self, text=replace(self.text, roles=roles, merge_from=merge_from), heads=heads)

    @property
    def answer_decoder(self) -> TextConfig:
        """Sizes of VQA's answer decoder, which attends to question states."""
        return replace(self.text, roles=("decode",), encoder_width=self.text.width)


PRESETS = {
    # For laptops and the demo: 48-pixel images, a vocabulary learned from the captions, milliseconds per step.
    "tiny": BlipConfig(
        VisionConfig(image_size=48, patch_size=8, width=128, depth=3, heads=4),
        TextConfig(
            vocab_size=512, width=128, depth=3, heads=4, hidden=512, max_positions=64, encoder_width=128, dropout=0.0
        ),
        embed_dim=64,
    ),
    "base": BlipConfig(),
    # The official code has a drop_path of 0.1 for every ViT-L, also in pre-training and in the momentum copy.
    "large": BlipConfig(
        VisionConfig(width=1024, depth=24, heads=16, drop_path=0.1),
        TextConfig(encoder_width=1024),
    ),
}
