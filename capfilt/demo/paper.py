"""Tables 2, 3, 4, 12 and 13 of the BLIP paper in miniature, beside the paper's figures (14M pictures, ViT-B).

Each variant is a row of the demo: a pre-training run from the same image encoder for the same number of steps, whose
model is finetuned and evaluated. The paper's shares and scores are of other data, so only directions can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from capfilt.bootstrap.gauges import gauge_texts
from capfilt.demo.filter_grades import SYNTHETIC, GradedText, grade_filter, read_texts, share
from capfilt.demo.plan import BOOTSTRAPPED, NOISY, DemoPlan
from capfilt.engine.commands import PlannedCommand
from capfilt.filter.decide import DUPLICATE, ITM_BELOW

BEAM, SHARED = "beam", "shared"  # sources of captions
TEXTS_BEFORE, TEXTS_AFTER = 15.3, 24.7  # million texts of the paper's epoch, before and after CapFilt
TITLES = {
    2: "Table 2: beam search or nucleus sampling of the synthetic captions",
    3: "Table 3: parameters shared by text encoder and decoder, on the noisy web texts",
    4: "Table 4: captioner and filter with shared parameters, or finetuned apart",
    12: "Table 12: the noisy web texts repeated as often as CapFilt's texts",
    13: "Table 13: the old model trained on, or a new one",
}


class Published(NamedTuple):
    """Figures of the paper: share of texts that the filter rejects, COCO retrieval and COCO captions, finetuned."""

    rejected: int | None
    text_recall: float
    image_recall: float
    cider: float


@dataclass(frozen=True)
class Variant:
    """A line of a table: the row of the demo that repeats it, and the source of its captions."""

    table: int
    label: str
    row: str
    published: Published
    source: str = ""


NO_CAPTIONS = Published(None, 78.4, 60.7, 127.8)
CAPFILT = Published(25, 80.6, 63.1, 129.7)
VARIANTS = (
    Variant(2, "no synthetic captions", NOISY, NO_CAPTIONS),
    Variant(2, "beam search", "table2_beam", Published(19, 79.6, 61.9, 128.9), BEAM),
    Variant(2, "nucleus sampling", BOOTSTRAPPED, CAPFILT, "captioner"),
    Variant(3, "all", "table3_all", Published(None, 77.3, 59.5, 125.9)),
    Variant(3, "all but cross-attention", "table3_all-but-ca", Published(None, 77.5, 59.9, 126.1)),
    Variant(3, "all but self-attention", NOISY, NO_CAPTIONS),
    Variant(3, "none", "table3_none", Published(None, 78.3, 60.5, 127.4)),
    Variant(4, "shared parameters", "table4_shared", Published(8, 79.8, 62.2, 129.0), SHARED),
    Variant(4, "finetuned apart", BOOTSTRAPPED, CAPFILT, "captioner"),
    Variant(12, "web texts, fewer steps", "table12_fewer", NO_CAPTIONS),
    Variant(12, "web texts, all steps", NOISY, Published(None, 78.3, 60.5, 127.7)),
    Variant(12, "captioner + filter, all steps", BOOTSTRAPPED, CAPFILT, "captioner"),
    Variant(13, "trained on", "table13_continued", Published(25, 80.6, 63.0, 129.9), "captioner"),
    Variant(13, "new", BOOTSTRAPPED, CAPFILT, "captioner"),
)


def variants(tables: Sequence[int]) -> list[Variant]:
    """Return the variants of the tables, in the order of the paper."""
    return [variant for variant in VARIANTS if variant.table in tables]


def table_commands(plan: DemoPlan, table: int) -> list[PlannedCommand]:
    """Return the commands of a table's variants that are no row of the demo."""
    noisy = plan.runs / NOISY
    if table == 2:
        captions = plan.write_captions(BEAM, plan.captioner(NOISY), "--mode", "beam", "--set", "generate.beams=3")
        filtered = plan.filter("table2_beam", plan.filter_run(NOISY), ["web", BEAM])
        return [captions, filtered, *plan.row("table2_beam", plan.filtered("table2_beam"))]
    if table == 3:
        shares = ("all", "all-but-ca", "none")
        rows = (plan.row(f"table3_{share}", plan.data, "--set", f"model.text.share={share}") for share in shares)
        return [command for row in rows for command in row]
    if table == 4:
        # One model that writes and judges: the three losses on the human pairs, as in pre-training.
        model = plan.runs / "captioner_and_filter"
        steps = plan.recipe.captioner_steps
        training = plan.pretrain(model.name, None, "--lr", "1e-3", init=noisy, steps=steps)
        captions = plan.write_captions(SHARED, model)
        filtered = plan.filter("table4_shared", model, ["web", SHARED])
        return [training, captions, filtered, *plan.row("table4_shared", plan.filtered("table4_shared"))]
    if table == 12:
        fewer = round(plan.recipe.pretrain_steps * TEXTS_BEFORE / TEXTS_AFTER)
        return plan.row("table12_fewer", plan.data, steps=fewer)
    return plan.row("table13_continued", plan.filtered(BOOTSTRAPPED), init=noisy)


def is_rejected(text: GradedText) -> bool:
    return text.reason.startswith(ITM_BELOW)


def grade_variant(plan: DemoPlan, variant: Variant) -> dict[str, Any]:
    """Return the rejected shares, right share and variety of a variant's captions; empty without captions.

    A text is rejected if its ITM is below the threshold, whether or not it is the best of its picture.
    """
    if not variant.source:
        return {}
    filtered = plan.filtered(variant.row if variant.source != "captioner" else BOOTSTRAPPED)
    texts = [text for text in read_texts(filtered, plan.corpus) if text.reason != DUPLICATE]
    grades, gauges = grade_filter(texts), gauge_texts(filtered, variant.source, set())
    synthetic = [text for text in texts if text.kind == SYNTHETIC]
    return {
        "rejected": share(texts, is_rejected),
        "rejected_synthetic": share(synthetic, is_rejected),
        "right_before": grades[SYNTHETIC]["right_before"],
        "right": grades[SYNTHETIC]["right"],
        "distinct_captions": gauges["distinct_captions"],
        "distinct_bigrams": gauges["distinct_bigrams"],
    }
