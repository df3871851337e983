"""Settings of caption generation, importable without torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class GenerateConfig:
    """Settings of caption generation. The defaults are the official nucleus sampling, which CapFilt uses."""

    mode: Literal["nucleus", "beam", "greedy"] = "nucleus"
    prompt: str = "a picture of "
    # Lengths count the prompt's tokens and the end token.
    max_length: int = 20
    min_length: int = 5
    top_p: float = 0.9
    # 0 = off. 50 is the default of transformers, with which the official code samples.
    top_k: int = 50
    temperature: float = 1.0
    # Also applies to the prompt's tokens. 1 = off, the official value for beam search.
    repetition_penalty: float = 1.1
    beams: int = 3
    num_captions: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("nucleus", "beam", "greedy"):
            raise ValueError(f"mode must be 'nucleus', 'beam' or 'greedy', not {self.mode!r}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.temperature <= 0 or self.repetition_penalty <= 0:
            raise ValueError(
                f"temperature and repetition_penalty must be above 0, not {self.temperature} and "
                f"{self.repetition_penalty}."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}.")
        if self.num_captions < 1 or self.beams < 1:
            raise ValueError(f"num_captions and beams must be at least 1, not {self.num_captions} and {self.beams}.")
        if self.mode == "greedy" and self.num_captions > 1:
            raise ValueError("Greedy decoding gives one caption per picture: use nucleus or beam for more.")
        if self.mode == "beam" and self.num_captions > self.beams:
            raise ValueError(
                f"{self.num_captions} captions from a beam search need at least as many beams, not {self.beams}."
            )
