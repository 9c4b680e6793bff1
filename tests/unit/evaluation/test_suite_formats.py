"""Suites in folders: each published layout in small, and what is wrong with them."""

import hashlib
from collections.abc import Mapping

import pytest

from lookalike.errors import InputError
from lookalike.evaluation.suites import FORMATS, Contents, Folder, Photo, Suite
from lookalike.evaluation.suites.templates import filled, kind_of

PUBLISHED = """Classes

subject_name,class
backpack,backpack
dog6,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} on top of pink fabric'.format(unique_token, class_token),
'a {0} {1} in a police outfit'.format(unique_token, class_token)
]
"""
PHOTOS = ("backpack/00.jpg", "backpack/02.jpg", "dog6/01.jpg", "dog6/03.jpg")


def folder(texts: Mapping[str, str], photos: Mapping[str, str] | tuple[str, ...]) -> Folder:
    """A folder with these texts, and photos whose bytes are named by the values (by default all differ)."""
    contents = photos if isinstance(photos, Mapping) else {key: key for key in photos}
    listed = {
        key: Photo(key, "file:///suite", key, hashlib.sha256(name.encode()).hexdigest())
        for key, name in sorted(contents.items())
    }
    return Folder("file:///suite", listed, frozenset(texts), texts.__getitem__)


def read(files: Folder) -> tuple[str, Contents]:
    """Read a folder in the first format that recognises it."""
    name, marker = next((n, m) for n, f in FORMATS.items() if (m := f.marker(files)) is not None)
    return name, FORMATS[name].read(files, marker)


@pytest.mark.parametrize("root", ["", "dataset/"])
def test_dreambench_has_the_prompts_of_each_kind_of_subject(root: str) -> None:
    photos = tuple(root + key for key in PHOTOS)
    name, contents = read(folder({f"{root}prompts_and_classes.txt": PUBLISHED}, photos))
    assert (name, contents.images_per_prompt) == ("dreambench", 4)
    assert [(s.sample_id, s.class_name, s.prompt, s.prompt_kind) for s in contents.samples] == [
        ("backpack-00", "backpack", "a backpack in the jungle", "place"),
        ("backpack-01", "backpack", "a red backpack", "recolouring"),
        ("backpack-02", "backpack", "a cube shaped backpack", "style"),
        ("dog6-00", "dog", "a dog on top of pink fabric", "place"),
        ("dog6-01", "dog", "a dog in a police outfit", "accessory"),
    ]
    assert {s.plain_prompt == s.prompt for s in contents.samples} == {True}
    # the published reference where the folder has it, else the first photo
    assert {s.subject: [p.key for p in s.references] for s in contents.samples} == {
        "backpack": [f"{root}backpack/02.jpg"],
        "dog6": [f"{root}dog6/01.jpg"],
    }
    assert {subject: len(own) for subject, own in contents.photos.items()} == {"backpack": 2, "dog6": 2}
    assert all(s.target is None for s in contents.samples)
    assert Suite(contents.samples, photos=contents.photos).losses(10, "right") == []


@pytest.mark.parametrize(
    ("change", "photos", "message"),
    [
        (("'a {0} {1} in the jungle'", "'a backpack in the jungle'"), PHOTOS, "line 12.*no placeholder"),
        (("'a {0} {1} in the jungle'", "'a {0} {1} {2}'"), PHOTOS, "line 12.*no placeholder"),
        (("'a {0} {1} in the jungle'", "'a {0.__class__} {1}'"), PHOTOS, "line 12.*no placeholder"),
        (("'a red {0} {1}'", "a red {0} {1}"), PHOTOS, "line 13 is not understood"),
        (("dog6,dog", "dog6"), PHOTOS, "line 5 is not a subject and its class"),
        (("dog6,dog", "../dog6,dog"), PHOTOS, "line 5 is not a subject"),
        (("dog6,dog", "..,dog"), PHOTOS, "line 5 is not a subject"),
        (("dog6,dog", "backpack,dog"), PHOTOS, "line 5 lists the subject 'backpack' again"),
        (("dog6,dog", "fox,fox"), PHOTOS, "'fox' has no photos.*fox/"),
        (("", ""), PHOTOS[:3], "'dog6' has 1 photo, at least 2.*remove the subject's line"),
        (("", ""), dict.fromkeys(PHOTOS, "equal"), "'backpack' has 1 photo"),
        (("Live Subject Prompts", "Object Prompts"), PHOTOS, "no prompts for live subjects, such as 'dog6'"),
    ],
)
def test_damaged_dreambench_is_named(change: tuple[str, str], photos: tuple[str, ...], message: str) -> None:
    files = folder({"prompts_and_classes.txt": PUBLISHED.replace(*change)}, photos)
    with pytest.raises(InputError, match=message):
        read(files)


def test_a_list_without_subjects_is_an_error() -> None:
    with pytest.raises(InputError, match=r"lists no subjects.*prompts_and_classes.txt"):
        read(folder({"prompts_and_classes.txt": "\n"}, PHOTOS))


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("a {0} {1} with the Eiffel Tower in the background", "place"),
        ("a {0} {1} floating in an ocean of milk", "place"),
        ("a {0} {1} wearing a black top hat and a monocle", "accessory"),
        ("a {0} {1} in a purple wizard outfit", "accessory"),
        ("a purple {0} {1}", "recolouring"),
        ("a wet {0} {1}", "style"),
        ("a {1} in the snow", "place"),
        ("two {0} {1}", ""),
    ],
)
def test_kind_of_a_published_template(template: str, kind: str) -> None:
    assert kind_of(template) == kind
    assert "{" not in (filled(template, "stuffed animal") or "{")


CAPTIONS = {
    "captions/object/00.txt": "Mug\na mug on a beach\n\na mug, in ink\n",
    "captions/live_subject/animal/01.txt": "Cat\na cat",
}
IMAGES = ("images/object/00.jpg", "images/live_subject/animal/01.jpg")


def test_dreambench_plus_has_one_photo_and_its_captions_for_a_subject() -> None:
    name, contents = read(folder(CAPTIONS, IMAGES))
    assert name == "dreambench_plus"
    assert [(s.sample_id, s.subject, s.class_name, s.prompt, s.references[0].key) for s in contents.samples] == [
        ("live_subject_animal_01_cat-00", "live_subject_animal_01_cat", "cat", "a cat", IMAGES[1]),
        ("object_00_mug-00", "object_00_mug", "mug", "a mug on a beach", IMAGES[0]),
        ("object_00_mug-01", "object_00_mug", "mug", "a mug, in ink", IMAGES[0]),
    ]


@pytest.mark.parametrize(
    ("texts", "photos", "message"),
    [
        (CAPTIONS, IMAGES[:1], "the captions have no photo.*animal/01.txt"),
        (dict(list(CAPTIONS.items())[:1]), IMAGES, "the photo has no captions.*animal/01.jpg"),
        ({**CAPTIONS, "captions/object/00.txt": "Mug\n"}, IMAGES, "no prompts.*object/00.txt"),
        ({**CAPTIONS, "captions/object/00.txt": ""}, IMAGES, "no prompts.*object/00.txt"),
    ],
)
def test_damaged_dreambench_plus_is_named(texts: dict[str, str], photos: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(folder(texts, photos))


LIST = """
classes: {rex: dog, tom: cat}
prompts:
- {prompt: a cat beside a dog, references: [./tom/00.jpg, rex/01.jpg], prompt_kind: place}
- {prompt: a dog, references: [rex/01.jpg], id: alone, plain_prompt: the dog}
- {prompt: a cat and a mug, references: [tom/00.jpg, mug.jpg]}
"""
PAIRS = ("tom/00.jpg", "tom/02.jpg", "rex/01.jpg", "mug.jpg", "unused/00.jpg")


def test_a_prompt_list_gives_references_of_several_subjects() -> None:
    name, contents = read(folder({"suite.yaml": LIST}, PAIRS))
    assert name == "prompts"
    both, alone, mug = contents.samples
    assert (both.sample_id, both.subject, both.subjects, both.class_name) == (
        "00000",
        "rex+tom",
        ("tom", "rex"),
        "cat and dog",
    )
    assert [photo.key for photo in both.references] == ["tom/00.jpg", "rex/01.jpg"]
    assert (alone.sample_id, alone.plain_prompt, both.prompt_kind) == ("alone", "the dog", "place")
    assert (mug.subject, mug.class_name) == ("mug+tom", "")
    assert {name: len(own) for name, own in contents.photos.items()} == {"tom": 2, "rex": 1, "mug": 1}
    suite = Suite(contents.samples, photos=contents.photos)
    assert {photo.key for photo in suite.photos_for(both)} == {"tom/00.jpg", "tom/02.jpg", "rex/01.jpg"}
    cases = suite.images(9, 9, "right")
    assert len(cases) == 3
    for case in cases:  # another subject's references show none of the case's own subjects
        if case.other is not None:
            assert set(suite.pool[case.other].shown).isdisjoint(suite.pool[case.target].shown)


def test_a_published_list_of_image_paths_is_read() -> None:
    text = '[{"index": 7, "prompt": "a cat and a dog", "image_paths": ["photos/tom/00.jpg", "photos/rex/01.jpg"]}]'
    _, contents = read(folder({"suite.json": text}, ("photos/tom/00.jpg", "photos/rex/01.jpg")))
    assert contents.samples[0].subjects == ("tom", "rex")


def test_accents_of_another_file_system_name_the_same_photo() -> None:
    text = '[{"prompt": "a cat", "references": ["caf\u00e9/00.jpg"]}]'
    _, contents = read(folder({"suite.json": text}, ("cafe\u0301/00.jpg",)))
    assert contents.samples[0].references[0].key == "cafe\u0301/00.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts"),
        ("prompts: []", "no prompts"),
        ("prompts: 3", "no prompts"),
        ("a: [", "not valid YAML.*suite.yaml"),
        ("classes: [a]\nprompts: [{prompt: a, references: [mug.jpg]}]", "classes is not a mapping"),
        ("prompts: [text]", "prompt 0: it is not a mapping"),
        ("prompts: [{references: [mug.jpg]}]", "prompt 0: it has no prompt"),
        ("prompts: [{prompt: ' ', references: [mug.jpg]}]", "prompt 0: it has no prompt"),
        ("prompts: [{prompt: a}]", "prompt 0: references is not a list"),
        ("prompts: [{prompt: a, references: []}]", "prompt 0: references is not a list"),
        ("prompts: [{prompt: a, references: [fox.jpg]}]", "'fox.jpg' is not a photo of the suite"),
        ("prompts: [{prompt: a, references: [../mug.jpg]}]", "is not a photo of the suite"),
        ("prompts: [{prompt: a, references: [mug.jpg], id: ../x}]", "its id cannot be a file's name"),
        ("prompts: [{prompt: a, references: [mug.jpg], seed: 3}]", "unknown field 'seed'"),
        ("prompts: [{prompt: a, references: [mug.jpg], prompt_kind: colour}]", "prompt_kind is none of"),
        (
            "prompts: [{prompt: a, references: [mug.jpg], id: x}, {prompt: b, references: [mug.jpg], id: x}]",
            "the id 'x'",
        ),
    ],
)
def test_damaged_prompt_lists_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(folder({"suite.yaml": text}, PAIRS))


def test_two_folders_of_one_name_are_refused() -> None:
    text = "prompts: [{prompt: a, references: [a/rex/0.jpg]}, {prompt: b, references: [b/rex/0.jpg]}]"
    with pytest.raises(InputError, match="'rex' has photos in 'a/rex' and in 'b/rex'"):
        read(folder({"suite.yaml": text}, ("a/rex/0.jpg", "b/rex/0.jpg")))
