import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lookalike.data.images import encode_png
from lookalike.evaluation.estimates import Estimate
from lookalike.evaluation.scores import Scores, Source
from lookalike.models.aggregate import LayerAggregator
from lookalike.report.curves import held_out_curve, layer_curve, loss_curve, smooth
from lookalike.report.page import (
    Curation,
    Evaluation,
    Finetune,
    Page,
    Reason,
    Training,
    data_uri,
    duration,
    render,
)
from lookalike.storage import open_store
from pipelines.report import _layer_weights

PICTURE = data_uri(encode_png(np.full((40, 80, 3), 128, np.uint8)))
RECORDS = [
    *({"step": step, "stage": "mllm", "loss": 1 / (1 + step)} for step in range(30)),
    {"step": 29, "stage": "mllm", "validation": {"loss_right": 0.4, "loss_shuffled": 0.5}},
    *({"step": step, "stage": "mllm+references", "loss": 0.1} for step in range(30, 50)),
    {"step": 49, "stage": "mllm+references", "validation": {"loss_right": 0.3, "loss_shuffled": 0.5}},
]

REFUSED = {
    "model": "acme--mug",
    "version": 1,
    "promoted": False,
    "checks": [
        {"name": "loss_gap.low", "value": 0.02, "threshold": 0.0, "passed": True, "why": "above 0"},
        {"name": "position/identity.mean", "value": 0.1234, "threshold": 0.25, "passed": False, "why": "not above"},
        {"name": "clip_t vs base", "value": None, "threshold": "unknown", "passed": False, "why": "not measured"},
    ],
    "verdict": "Refused: a person would not recognise the <subject>.",
    "advice": ["Add photos of the subject."],
}


def _scores(gap_low: float = 0.01) -> Scores:
    names = ("loss_right", "loss_shuffled", "identity", "identity_margin", "mllm_only/identity", "before/identity")
    metrics = {name: Estimate(0.5, 0.4, 0.6, 16) for name in names} | {"loss_gap": Estimate(0.02, gap_low, 0.03, 256)}
    return Scores(Source("file:///b", "ab"), Source("file:///d", "cd", 1), "right", metrics, "an embedder")


def _full_page() -> Page:
    return Page(
        title="A <model> & its subjects",
        curation=Curation(
            images_in=10,
            images_kept=7,
            subjects=3,
            triplets={"train": 1234, "validation": 4},
            reasons=[Reason("too_small", 2, "Too few pixels.", [(PICTURE, [PICTURE])]), Reason("undecodable", 1)],
            samples=[([PICTURE], PICTURE, 'a "quoted" <prompt>')],
        ),
        training=Training(
            loss_curve(RECORDS),
            held_out_curve(RECORDS),
            [{"stage": "mllm", "loss_first": 1.0, "loss_last": 0.2, "validation": None}],
            {"optimizer steps": "50"},
        ),
        evaluations=[Evaluation(_scores(), PICTURE)],
        decisions=[
            {
                "model": "lookalike-mini",
                "version": "1",
                "promoted": True,
                "checks": [{"name": "loss_gap", "value": 0.02, "threshold": None, "passed": True, "why": "above 0"}],
                "verdict": "",
            }
        ],
        finetune=Finetune("acme", "mug", PICTURE, _scores(), REFUSED, 2),
        generation=("acme--mug, version 1", PICTURE),
        timings=[{"step": "train", "seconds": 83.2, "peak_memory_gib": 2.5, "outcome": "a bundle"}],
        code_version="0.1.0",
    )


class _Audit(HTMLParser):
    """Collects what a page would load, and checks that its tags close."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_valid_html_and_loads_no_other_files() -> None:
    html = render(_full_page())
    audit = _Audit()
    audit.feed(html)
    assert audit.open == []
    assert all(source.startswith(("data:", "#")) for source in audit.sources)
    assert not re.search(r"@import|<script|url\((?!#)", html)


def test_text_from_outside_is_escaped() -> None:
    html = render(_full_page())
    assert "A &lt;model&gt; &amp; its subjects" in html
    assert "<prompt>" not in html


def test_every_section_has_its_content() -> None:
    html = render(_full_page())
    for text in ("too small", "2 dropped", "promoted", "1 min 23 s", "acme--mug, version 1", "1\u2009234", "0.0200"):
        assert text in html
    assert "above 0" in html


def test_gap_whose_interval_includes_zero_is_marked() -> None:
    html = render(Page("t", evaluations=[Evaluation(_scores(gap_low=-0.001), PICTURE)]))
    assert "not above 0" in html


@pytest.mark.parametrize("section", ["curation", "training", "finetune", "generation"])
def test_any_section_may_be_absent(section: str) -> None:
    import dataclasses

    html = render(dataclasses.replace(_full_page(), **{section: None}))
    assert f'id="{section}"' not in html


def test_page_without_sections_is_rendered() -> None:
    assert "<h1>empty</h1>" in render(Page("empty"))


def test_schedules_of_images_are_named_with_the_main_one_first() -> None:
    labels = [label for label, _ in Evaluation(_scores(), PICTURE).images]
    assert labels == ["staged (τ .95 / .85)", "MLLM only", "before: staged (τ .95 / .85)"]


def test_smoothing_keeps_constants_and_the_length() -> None:
    assert np.allclose(smooth(np.full(50, 3.0)), 3.0)
    noisy = np.random.default_rng(0).normal(size=200)
    assert len(smooth(noisy)) == 200
    assert smooth(noisy).std() < 0.5 * noisy.std()
    assert smooth(np.array([2.0])) == pytest.approx([2.0])


def test_curves_are_deterministic() -> None:
    assert loss_curve(RECORDS) == loss_curve(RECORDS)
    assert "mllm+references" in held_out_curve(RECORDS)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3601, "60 min 01 s")])
def test_duration_format(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_layer_weights_are_those_of_the_aggregator(bundle_dir: Path) -> None:
    weights = LayerAggregator.from_pretrained(bundle_dir / "aggregator").layer_weights()
    found = _layer_weights(open_store(str(bundle_dir)))
    assert {name: pytest.approx(values) for name, values in found.items()} == {
        name: values.tolist() for name, values in weights.items()
    }
    svg = layer_curve(found)
    assert {"image", "text"} <= set(found)
    assert all(f">{name}<" in svg for name in found)


def test_page_of_a_finetune_explains_a_refusal() -> None:
    html = render(_full_page())
    finetune = html[html.index('id="finetune"') :]
    for text in (
        "refused</span>",
        "Refused: a person would not recognise the &lt;subject&gt;.",
        "0.1234",
        "asked for: 0.2500",
        "<li>Add photos of the subject.</li>",
        "2 of the photos were kept from training",
        PICTURE,
    ):
        assert text in finetune
    assert "clip t vs base" not in finetune  # a check without a number


def test_page_of_a_finetune_without_held_out_photos_says_so() -> None:
    promoted = {**REFUSED, "promoted": True, "verdict": "Promoted: it passed every check."}
    html = render(Page(title="t", finetune=Finetune("acme", "mug", PICTURE, _scores(), promoted)))
    assert "No photo was kept from training" in html
    assert "Promoted: it passed every check." in html
    assert "what to do" not in html
    earlier = render(Page(title="t", finetune=Finetune("acme", "mug", PICTURE, _scores())))
    assert "refused</span>" not in earlier
