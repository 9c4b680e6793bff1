"""Samples of a suite: a subject with a prompt and references, and perhaps a real photo that shows the prompt."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lookalike.data.triplet_files import stored_images
from lookalike.data.triplets import Triplet
from lookalike.errors import InputError

MOST_PHOTOS = 16
"""Real photos of a subject that metrics see."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A real photo and where it is stored; its bytes are checked by their hash when they are read."""

    what: str
    """What it is, for messages: ``the target``, ``reference 0``, ``dog/01.jpg``."""
    store: str
    """URI of the snapshot's version, or of the folder that holds the file."""
    key: str
    """Key of the pack in the snapshot's data set, or of the file in the folder."""
    sha256: str
    """SHA-256 (hex) of the photo's bytes."""
    offset: int | None = None
    """First byte in the pack; None for a file of its own."""
    length: int | None = None
    """Bytes in the pack; None for a file of its own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing that an evaluation measures or generates."""

    sample_id: str
    """Unique in its suite; a valid part of a key."""
    subject: str
    """The subject, by which intervals are clustered; of several subjects their names joined by ``+``."""
    class_name: str
    """Class of the subject; may be empty."""
    prompt: str
    """The prompt that the model gets."""
    references: tuple[Photo, ...]
    """Photos of the subject that the model gets."""
    target: Photo | None = None
    """A real photo that shows the prompt; None if the suite has none, so that no loss can be measured."""
    plain_prompt: str = ""
    """The prompt with the class alone; empty unless the suite has templates."""
    prompt_kind: str = ""
    """``place``, ``recolouring``, ``accessory``, ``style``, or empty if unknown."""
    subjects: tuple[str, ...] = ()
    """The subjects that the image should show; empty for the one ``subject``."""
    damage: str = ""
    """Why the sample cannot be read; empty if it can."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of the subjects that an image of this sample should show."""
        return self.subjects or (self.subject,)


@dataclass(frozen=True)
class Contents:
    """What a suite's folder holds."""

    samples: Sequence[Sample]
    photos: Mapping[str, tuple[Photo, ...]] = field(default_factory=dict)
    """All photos of each subject, by its name."""
    images_per_prompt: int = 1
    """The number of the published protocol."""


def samples_of(triplets: Iterable[Triplet], version_uri: str) -> list[Sample]:
    """Make the samples of the triplets of one snapshot; a damaged row gives a sample with the reason.

    Texts that many samples have, such as the names of subjects and packs, are in memory once.
    """
    texts: dict[str, str] = {}
    return [_sample(triplet, version_uri, lambda text: texts.setdefault(text, text)) for triplet in triplets]


def _sample(triplet: Triplet, version_uri: str, shared: Callable[[str], str]) -> Sample:
    damage = ""
    photos: list[Photo] = []
    try:
        photos = [
            Photo(
                shared(file.what),
                version_uri,
                shared(file.place.key),
                shared(file.sha256),
                file.place.offset,
                file.place.length,
            )
            for file in stored_images(triplet)
        ]
    except InputError as error:
        damage = error.what
    return Sample(
        triplet.triplet_id,
        shared(triplet.subject),
        shared(triplet.class_name or ""),
        shared(triplet.prompt),
        references=tuple(photos[1:]),
        target=photos[0] if photos else None,
        damage=damage,
    )


def distinct(photos: Iterable[Photo], without: Iterable[Photo] = ()) -> tuple[Photo, ...]:
    """Select photos whose bytes differ from each other and from those of ``without``, in their order."""
    seen = {photo.sha256 for photo in without}
    selected = []
    for photo in photos:
        if photo.sha256 not in seen:
            seen.add(photo.sha256)
            selected.append(photo)
    return tuple(selected)
