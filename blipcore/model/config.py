"""Configs of the vision transformer, the text transformer and BLIP, with presets and checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

LARGEST = {"depth": 1 << 10, "heads": 1 << 10}  # beyond these, and 1 << 24 for a width, a config is damaged


def require_sizes(config: object, *names: str) -> None:
    """ValueError unless the fields `names` of a config are whole numbers above 0, and sizes that a model may have."""
    for name in names:
        size, most = getattr(config, name), LARGEST.get(name, 1 << 24)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {size!r}")
        if size > most:
            raise ValueError(f"{name} must be at most {most}, not {size}")


def require_numbers(config: object, most: float, *names: str) -> None:
    """ValueError unless the fields `names` of a config are numbers from 0 to `most`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
            raise ValueError(f"{name} must be a number from 0 to {most:g}, not {value!r}")


@dataclass
class VisionConfig:
    """Sizes of the image encoder; the defaults are ViT-B/16 at 224 pixels."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    drop_path: float = 0.0  # rate of the last block; grows linearly from 0 at the first
    eps: float = 1e-6
    pre_norm: bool = False  # a LayerNorm before the first block, as in CLIP's image encoders
    activation: Literal["gelu", "quick_gelu"] = "gelu"  # OpenAI's CLIP has the quick one

    def __post_init__(self) -> None:
        require_sizes(self, "image_size", "patch_size", "width", "depth", "heads")
        require_numbers(self, 1, "drop_path", "eps")
        require_numbers(self, 1 << 10, "mlp_ratio")
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"vision activation is 'gelu' or 'quick_gelu', not {self.activation!r}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"vision width {self.width} is not a multiple of its {self.heads} heads")


Share = Literal["all", "all-but-sa", "all-but-ca", "none"]


@dataclass
class TextConfig:
    """Sizes of the text transformer; the defaults are BERT-base with BLIP's two extra tokens."""

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    encoder_width: int = 768  # width of the states that cross-attention reads
    dropout: float = 0.1
    eps: float = 1e-12
    roles: tuple[str, ...] = ("encode", "decode")
    share: Share = (
        "all-but-sa"  # what the roles have in common (SA, CA: self- and cross-attention); BLIP's is the default
    )
    merge_from: int | None = None  # two images a text (NLVR2); from this layer on, what they tell is merged by weights

    def __post_init__(self) -> None:
        require_sizes(self, "vocab_size", "width", "depth", "heads", "hidden", "max_positions", "encoder_width")
        self.roles = tuple(self.roles)
        if not self.roles or set(self.roles) - {"encode", "decode"}:
            raise ValueError(f"text roles are 'encode' and 'decode', not {self.roles}")
        if self.share not in get_args(Share):
            raise ValueError(f"share is one of {', '.join(get_args(Share))}, not {self.share!r}")
        if self.width % self.heads:
            raise ValueError(f"text width {self.width} is not a multiple of its {self.heads} heads")


HEADS = ("itc", "itm", "vqa", "nlvr")


@dataclass
class BlipConfig:
    """Sizes and parts of a BLIP model."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 256  # width of the joint ITC space
    heads: tuple[str, ...] = ("itc", "itm")

    def __post_init__(self) -> None:
        require_sizes(self, "embed_dim")
        require_numbers(self.text, 1, "dropout", "eps")
        self.heads = tuple(self.heads)
        if set(self.heads) - set(HEADS):
            raise ValueError(f"heads are {HEADS}, not {self.heads}")
        if self.heads and "encode" not in self.text.roles:
            raise ValueError("all heads need the text role 'encode'")
        if ("nlvr" in self.heads) != (self.text.merge_from is not None):
            raise ValueError("text.merge_from is for the head 'nlvr', which needs it")
        if self.text.merge_from is not None:
            require_numbers(self.text, self.text.depth, "merge_from")
        if self.text.encoder_width != self.vision.width:
            raise ValueError(f"text.encoder_width {self.text.encoder_width} must be vision.width {self.vision.width}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BlipConfig:
        """The inverse of `to_dict`; raises ValueError on a key that is not a field."""
        parts = {"vision": VisionConfig, "text": TextConfig}
        known = {f.name for f in fields(cls)}
        for section, part in [("", cls), *parts.items()]:
            names = {f.name for f in fields(part)}
            given = set(values.get(section, {}) if section else values)
            if given - names:
                raise ValueError(f"unknown model config keys {sorted(given - names)}; known are {sorted(names)}")
        built = {name: parts[name](**value) if name in parts else value for name, value in values.items()}
        return cls(**{name: built[name] for name in known & built.keys()})

    def only(self, *needs: str) -> BlipConfig:
        """The same sizes with only the roles and heads in `needs` (of encode, decode, itc, itm, vqa, nlvr)."""
        roles = tuple(role for role in ("encode", "decode") if role in needs)
        heads = tuple(head for head in HEADS if head in needs)
        merge_from = None
        if "nlvr" in heads:  # the upper half merges: layers 6 to 11 of BERT-base, as in the official model
            merge_from = self.text.depth // 2 if self.text.merge_from is None else self.text.merge_from
        return replace(self, text=replace(self.text, roles=roles, merge_from=merge_from), heads=heads)

    @property
    def answer_text(self) -> TextConfig:
        """Sizes of VQA's answer decoder: those of the text body, with question states to attend to."""
        return replace(self.text, roles=("decode",), encoder_width=self.text.width)


PRESETS = {
    # For laptops and the demo: 48-pixel pictures, a vocabulary trained on the captions, a step takes milliseconds.
    "tiny": BlipConfig(
        VisionConfig(image_size=48, patch_size=8, width=128, depth=3, heads=4),
        TextConfig(
            vocab_size=512, width=128, depth=3, heads=4, hidden=512, max_positions=64, encoder_width=128, dropout=0.0
        ),
        embed_dim=64,
    ),
    "base": BlipConfig(),
    # drop_path is 0.1 wherever ViT-L appears in the official code, also in pre-training and in the momentum copy.
    "large": BlipConfig(
        VisionConfig(width=1024, depth=24, heads=16, drop_path=0.1),
        TextConfig(encoder_width=1024),
    ),
}
