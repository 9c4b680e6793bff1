"""Suites: which samples an evaluation measures, and the formats that they are read from. Pure functions of a seed."""

from collections.abc import Callable
from dataclasses import dataclass

from lookalike.evaluation.suites import dreambench, dreambench_plus, prompt_list
from lookalike.evaluation.suites.cases import Case, Suite, chosen_rows
from lookalike.evaluation.suites.class_prompts import with_class_prompts
from lookalike.evaluation.suites.folder import MOST_PROMPTS, Folder
from lookalike.evaluation.suites.samples import Contents, Photo, Sample, distinct, samples_of
from lookalike.evaluation.suites.stand_ins import StandIn, stand_ins

__all__ = [
    "FORMATS",
    "MOST_PROMPTS",
    "Case",
    "Contents",
    "Folder",
    "Format",
    "Photo",
    "Sample",
    "StandIn",
    "Suite",
    "chosen_rows",
    "distinct",
    "samples_of",
    "stand_ins",
    "with_class_prompts",
]


@dataclass(frozen=True)
class Format:
    """A published layout of a suite in a folder."""

    marker: Callable[[Folder], str | None]
    """Returns the key of a file that only this format has, or None."""
    read: Callable[[Folder, str], Contents]
    """Reads the suite, given the marker."""
    needs: str
    """The files that the format needs, for messages."""


FORMATS: dict[str, Format] = {
    "dreambench": Format(dreambench.marker, dreambench.read, dreambench.LIST),
    "dreambench_plus": Format(dreambench_plus.marker, dreambench_plus.read, "captions/CATEGORY/NN.txt"),
    "prompts": Format(prompt_list.marker, prompt_list.read, "suite.yaml or suite.json"),
}
"""Formats by their name in ``--suite_format``, beside ``curated``; ``lookalike/evaluation/README.md`` says how to add
one."""
