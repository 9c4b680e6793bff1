"""DreamBench++ (Peng et al. 2024): 150 photos of one subject each, 9 prompts for each photo.

The layout is that of the benchmark's own reader (``dreambench_plus_dataset.py``): ``images/CATEGORY/NN.jpg``, and for
each photo ``captions/CATEGORY/NN.txt``, whose first line is the subject and whose other lines are prompts. There is one
photo of a subject, so that no other photo of it can give a ceiling.
"""

import re
from pathlib import PurePosixPath

from lookalike.evaluation.suites.folder import Folder
from lookalike.evaluation.suites.samples import Contents, Sample

_LIVE = ("animal", "human")
_FIX = "restore the published folder: images/CATEGORY/NN.jpg with captions/CATEGORY/NN.txt"


def marker(folder: Folder) -> str | None:
    """Return the key of a caption if the folder is such a suite."""
    roots = ("captions/", "data/captions/")
    return min((key for key in folder.texts if key.startswith(roots) and key.endswith(".txt")), default=None)


def read(folder: Folder, marked: str) -> Contents:
    """Read the suite. Raises InputError that names a photo without prompts, or prompts without a photo."""
    root = marked.partition("captions/")[0]
    images, captions = f"{root}images/", f"{root}captions/"
    photos = {str(PurePosixPath(key).with_suffix("")): key for key in folder.photos if key.startswith(images)}
    texts = {key.removesuffix(".txt"): key for key in folder.texts if key.startswith(captions) and key.endswith(".txt")}
    if missing := sorted(photos.keys() - {images + name.removeprefix(captions) for name in texts}):
        raise folder.error("the photo has no captions", photos[missing[0]], _FIX)
    samples: list[Sample] = []
    groups = {}
    for name, key in sorted(texts.items()):
        photo_key = photos.get(images + name.removeprefix(captions))
        if photo_key is None:
            raise folder.error("the captions have no photo", key, _FIX)
        subject, *prompts = [line.strip() for line in folder.read(key).splitlines() if line.strip()] or [""]
        if not prompts:
            raise folder.error("the file has no prompts", key, "write the subject, then a prompt on each line")
        path = PurePosixPath(name)
        category = f"live_subject_{path.parent.name}" if path.parent.name in _LIVE else path.parent.name
        subject_id = "_".join(filter(None, [category, path.name, re.sub(r"[^\w.-]+", "_", subject.lower())]))[:200]
        if subject_id in groups:
            raise folder.error(f"there are two subjects {subject_id}", key, "rename one of them")
        photo = folder.photos[photo_key]
        groups[subject_id] = (photo,)
        samples += [
            Sample(f"{subject_id}-{number:02d}", subject_id, subject.lower(), prompt, (photo,))
            for number, prompt in enumerate(prompts)
        ]
    return Contents(samples, groups)
