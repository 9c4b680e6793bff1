"""DreamBench (Ruiz et al. 2023): a checkout of ``google/dreambooth``, or its ``dataset`` folder.

30 subjects, 25 prompts for each (one list for objects, one for live subjects), 4 images for each prompt; the photos of
a subject lie in a folder with its name. Models that read references get one fixed photo. It is the one that Kosmos-G
(Pan et al. 2023) published and later work uses, where the folder has it; else the first by name.
"""

import re
from dataclasses import dataclass, field

from lookalike.evaluation.suites.folder import Folder, is_name
from lookalike.evaluation.suites.samples import Contents, Photo, Sample
from lookalike.evaluation.suites.templates import filled, kind_of

LIST = "prompts_and_classes.txt"
IMAGES_PER_PROMPT = 4
_LIVE = frozenset({"cat", "dog"})  # classes of the published live subjects; the file does not say
_REFERENCES = {
    "backpack": "02", "backpack_dog": "02", "bear_plushie": "03", "berry_bowl": "02", "can": "01", "candle": "02",
    "cat": "04", "cat2": "02", "clock": "03", "colorful_sneaker": "01", "dog": "02", "dog2": "02", "dog3": "05",
    "dog5": "00", "dog6": "02", "dog7": "01", "dog8": "04", "duck_toy": "01", "fancy_boot": "02",
    "grey_sloth_plushie": "04", "monster_toy": "04", "pink_sunglasses": "04", "poop_emoji": "00", "rc_car": "03",
    "red_cartoon": "00", "robot_toy": "00", "shiny_sneaker": "01", "teapot": "04", "vase": "02", "wolf_plushie": "04",
}  # fmt: skip
_HEADINGS = {"classes": "classes", "prompts": "", "object prompts": "object", "live subject prompts": "live"}
_HEADER = "subject_name,class"
_PROMPT = re.compile(r"""(['"])(?P<template>.*)\1\s*(?:\.format\([^)]*\))?\s*,?""")
_FIX = "restore the published prompts_and_classes.txt, or correct this line"


@dataclass
class _List:
    """What the list says."""

    classes: dict[str, str] = field(default_factory=dict)
    """Class of each subject."""
    templates: dict[str, list[str]] = field(default_factory=lambda: {"object": [], "live": []})


def marker(folder: Folder) -> str | None:
    """Return the key of the list if the folder is such a suite."""
    return next((key for key in (LIST, f"dataset/{LIST}") if key in folder.texts), None)


def read(folder: Folder, marked: str) -> Contents:
    """Read the suite whose list is at the key ``marked``.

    Raises InputError that names the file: a line that is not understood, a template without the class, a subject
    without a folder or with fewer than two different photos.
    """
    listed = _parse(folder, marked)
    root = marked.removesuffix(LIST)
    samples: list[Sample] = []
    groups: dict[str, tuple[Photo, ...]] = {}
    for subject, class_name in listed.classes.items():
        photos = folder.inside(f"{root}{subject}/")
        if len(photos) < 2:
            what = (
                f"subject {subject!r} has {len(photos) or 'no'} photo{'s' * (len(photos) != 1)}, at least 2 are needed"
            )
            fix = f"add photos, or remove the subject's line from {LIST}"
            raise folder.error(what, f"{root}{subject}/", fix)
        groups[subject] = photos
        fixed = _REFERENCES.get(subject, "")
        reference = next((photo for photo in photos if photo.key == f"{root}{subject}/{fixed}.jpg"), photos[0])
        kind = "live" if class_name in _LIVE else "object"
        if not listed.templates[kind]:
            raise folder.error(f"it has no prompts for {kind} subjects, such as {subject!r}", marked, _FIX)
        for number, template in enumerate(listed.templates[kind]):
            prompt = filled(template, class_name)
            assert prompt is not None, "templates are checked when they are read"
            samples.append(
                Sample(
                    f"{subject}-{number:02d}",
                    subject,
                    class_name,
                    prompt,
                    (reference,),
                    plain_prompt=prompt,
                    prompt_kind=kind_of(template),
                )
            )
    return Contents(samples, groups, IMAGES_PER_PROMPT)


def _parse(folder: Folder, key: str) -> _List:
    listed, section = _List(), ""
    for number, line in enumerate(map(str.strip, folder.read(key).splitlines()), 1):
        if line.lower() in _HEADINGS:
            section = _HEADINGS[line.lower()]
        elif not line or line == "]" or line.startswith("prompt_list") or (section == "classes" and line == _HEADER):
            continue
        elif section == "classes":
            subject, comma, class_name = (part.strip() for part in line.partition(","))
            if not comma or not class_name or not is_name(subject):
                raise folder.error(f"line {number} is not a subject and its class: {line[:80]!r}", key, _FIX)
            if subject in listed.classes:
                raise folder.error(f"line {number} lists the subject {subject!r} again", key, _FIX)
            listed.classes[subject] = class_name
        else:
            match = _PROMPT.fullmatch(line)
            if not section or match is None:
                raise folder.error(f"line {number} is not understood: {line[:80]!r}", key, _FIX)
            if filled(match["template"], "class") is None:
                what = (
                    f"line {number}: the prompt has no placeholder {{1}} for the class, or another one: {line[:80]!r}"
                )
                raise folder.error(what, key, _FIX)
            listed.templates[section].append(match["template"])
    if not listed.classes:
        raise folder.error("it lists no subjects", key, _FIX)
    return listed
