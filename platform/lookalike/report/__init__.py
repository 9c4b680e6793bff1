"""One self-contained HTML page about a model: from what was curated to what it generates."""

from lookalike.report.page import (
    Curation,
    Decision,
    Evaluation,
    Finetune,
    Generation,
    Page,
    Reason,
    Reject,
    Training,
    Triplet,
    render,
)

__all__ = [
    "Curation",
    "Decision",
    "Evaluation",
    "Finetune",
    "Generation",
    "Page",
    "Reason",
    "Reject",
    "Training",
    "Triplet",
    "render",
]
