"""How captions are decoded, as settings that a command can read before it needs torch; `generate` follows them."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class GenerateConfig:
    """How captions are decoded; the defaults are the official nucleus preset, for which CapFilt is known."""

    mode: Literal["nucleus", "beam", "greedy"] = "nucleus"
    prompt: str = "a picture of "
    max_length: int = 20  # counts the prompt's tokens and the end token, as does min_length
    min_length: int = 5
    top_p: float = 0.9
    top_k: int = 50  # 0 = off; the official sampler inherits 50 without saying so
    temperature: float = 1.0
    repetition_penalty: float = 1.1  # counts the prompt's tokens too; 1 = off, the official value for beams
    beams: int = 3
    num_captions: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("nucleus", "beam", "greedy"):
            raise ValueError(f"mode is 'nucleus', 'beam' or 'greedy', not {self.mode!r}")
        if not 0 < self.top_p <= 1 or self.temperature <= 0 or self.repetition_penalty <= 0 or self.top_k < 0:
            raise ValueError("top_p is in (0, 1], temperature and repetition_penalty are above 0, top_k is 0 or more")
        if self.num_captions < 1 or self.beams < 1:
            raise ValueError("num_captions and beams are at least 1")
        if self.mode == "greedy" and self.num_captions > 1:
            raise ValueError("greedy decoding knows one caption a picture: sample for more, or use beams")
        if self.mode == "beam" and self.num_captions > self.beams:
            raise ValueError(f"{self.num_captions} captions of a beam search need as many beams, not {self.beams}")
