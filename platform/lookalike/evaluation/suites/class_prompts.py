"""DreamBench's prompts for any subject, in place of captions, for suites whose photos come without prompts.

The captions of a subject's photos say what the photos show, so images of them cannot say whether a model follows other
prompts. DreamBench (Ruiz et al. 2023, DreamBooth, section 4.1) has 25 prompts for live subjects and 25 for objects,
each with the class of the subject: other places, other colours, accessories (of live subjects), and other styles.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from lookalike.evaluation.suites.samples import Sample
from lookalike.evaluation.suites.templates import PromptKind, filled, kind_of

NEUTRAL = "subject"
"""The class of a subject whose class is not known: as in the captions that curation writes for photos without any."""

_PLACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
_PLACES_OF_OBJECTS = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
_ACCESSORIES = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle",
    "in a chef outfit", "in a firefighter outfit", "in a police outfit", "wearing pink glasses",
    "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")
# fmt: off
_LIVE = frozenset((
    "animal", "baby", "bear", "bird", "boy", "bunny", "camel", "cat", "chicken", "child", "cow", "deer", "dog",
    "dolphin", "duck", "elephant", "fish", "fox", "frog", "girl", "goat", "goose", "hamster", "horse", "human",
    "kid", "kitten", "lion", "lizard", "man", "monkey", "mouse", "owl", "panda", "parrot", "penguin", "person",
    "pet", "pig", "pony", "pup", "puppy", "rabbit", "sheep", "snake", "squirrel", "tiger", "turtle", "wolf",
    "woman",
))  # last words of classes
# fmt: on
_TOYS = ("toy", "stuffed", "plush", "plushie")


def templates_of(class_name: str) -> tuple[str, ...]:
    """The 25 published templates for a class, in an order whose beginnings hold about the published mix of kinds."""
    words = class_name.casefold().split()
    live = bool(words) and words[-1] in _LIVE and not any(word in _TOYS for word in words)
    scenes = (*_PLACES, *(_ACCESSORIES if live else _PLACES_OF_OBJECTS))
    published = [f"a {{0}} {{1}} {scene}" for scene in scenes] + [f"a {each} {{0}} {{1}}" for each in _PROPERTIES]
    places: list[tuple[float, int, str]] = []
    for rank, kind in enumerate(get_args(PromptKind)):
        own = [template for template in published if kind_of(template) == kind]
        places += [((number + 0.5) / len(own), rank, template) for number, template in enumerate(own)]
    return tuple(template for _, _, template in sorted(places))


def with_class_prompts(samples: Sequence[Sample], subjects: int) -> list[Sample]:
    """Make the 25 samples of each of the first ``subjects`` subjects by name, with its prompts in place of captions.

    A subject's samples take turns, so that its targets and references are all used. Its class is the first that one of
    its samples has, or :data:`NEUTRAL`. Ids are ``ID-pNN``: of the sample whose photos it has, and the prompt's number.
    """
    by_subject: dict[str, list[Sample]] = {
        subject: [] for subject in sorted({sample.subject for sample in samples})[:subjects]
    }
    for sample in sorted(samples, key=lambda each: each.sample_id):
        if sample.subject in by_subject:
            by_subject[sample.subject].append(sample)
    made: list[Sample] = []
    for own in by_subject.values():
        readable = [sample for sample in own if not sample.damage] or own
        class_name = next((sample.class_name for sample in own if sample.class_name.strip()), NEUTRAL)
        for number, template in enumerate(templates_of(class_name)):
            prompt, sample = filled(template, class_name), readable[number % len(readable)]
            assert prompt is not None, "a published template has the class"
            made.append(
                replace(
                    sample,
                    sample_id=f"{sample.sample_id}-p{number:02d}",
                    class_name=class_name,
                    prompt=prompt,
                    plain_prompt=prompt,
                    prompt_kind=kind_of(template),
                )
            )
    return made
