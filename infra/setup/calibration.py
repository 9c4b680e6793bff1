"""Make the calibration images of judges, and record what the packaged judges say about them.

    python infra/setup/calibration.py images    # renders platform/lookalike/assets/calibration/*.webp and images.json
    python infra/setup/calibration.py record    # writes recorded.json there

`images` renders subjects of the sample world (extra `sample`): two photos of each in different views and places, and a
third image that is one of them after a simple change. Other versions of pybullet may render other pixels: the shipped
images are fixed, and are made again only if judges must be calibrated on others. Then all recorded values are made
again, and scores from before cannot be compared with new ones. `record` is run again after a packaged judge was changed
on purpose.
"""

import hashlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from lookalike.annotators.embedder import EMBEDDERS, NO_EMBEDDER
from lookalike.documents import render_json
from lookalike.evaluation.calibration import CALIBRATION_DIR, IMAGES, RECORDED, calibrate
from lookalike.evaluation.metrics.identity import Identity
from pipelines.ingest.sample.scene import render
from pipelines.ingest.sample.world import body, photo, subject

_WORLD, _SIDE, _VIEWS = 20, 96, 8  # seed of the world; pixels; evenly spaced views of a subject, of which two are shown
_SUBJECTS = (0, 1, 2, 3, 4, 5, 6, 7)  # every fourth is the twin of the one before: the same colours, another shape
_SECOND_VIEW = 3  # 135 degrees from the first, in another place

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": lambda image: image.crop((12, 18, 84, 90)).resize(image.size, Image.Resampling.BICUBIC),
    "landscape": lambda image: image.crop((0, 6, 96, 70)),
    "recoloured": lambda image: Image.fromarray(np.roll(np.asarray(image), 1, axis=2)),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
    "dark": lambda image: image.point(lambda value: value * 0.5),
    "blocks": lambda image: image.resize((24, 24), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST),
}
"""One for each subject."""


def make_images() -> int:
    """Write the images and their list; returns their size in bytes."""
    CALIBRATION_DIR.mkdir(parents=True, exist_ok=True)
    listed, total = [], 0
    for number, (name, change) in zip(_SUBJECTS, CHANGES.items(), strict=True):
        thing = subject(_WORLD, number)
        shown = [photo(thing, index, _VIEWS) for index in (0, _SECOND_VIEW)]
        images = [Image.fromarray(render(body(thing), one.view, one.place, _SIDE)[0]) for one in shown]
        rows = [("first", images[0], shown[0]), ("second", images[1], shown[1]), (name, change(images[1]), shown[1])]
        for what, image, one in rows:
            buffer = io.BytesIO()
            image.save(buffer, format="WEBP", lossless=True, method=6, exact=True)
            file = f"{thing.name}-{what}.webp"
            (CALIBRATION_DIR / file).write_bytes(buffer.getvalue())
            total += len(buffer.getvalue())
            listed.append(
                {
                    "image": f"{thing.name}-{what}",
                    "subject": thing.name,
                    "class": thing.shape,
                    "prompt": one.caption,
                    "plain_prompt": replace(one, bare=True).caption,
                    "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
                }
            )
    (CALIBRATION_DIR / IMAGES).write_bytes(render_json(listed))
    return total


def record() -> int:
    """Record the values of each packaged judge; returns the number of judges."""
    judges = {}
    for name, embedder in EMBEDDERS.items():
        if name != NO_EMBEDDER:
            judge = calibrate([Identity(embedder())])
            judges[embedder.revision] = {metric: found.values for metric, found in judge.metrics.items()}
    (CALIBRATION_DIR / RECORDED).write_bytes(render_json(judges))
    return len(judges)


if __name__ == "__main__":
    if sys.argv[1:] == ["images"]:
        print(f"{make_images()} bytes of images in {CALIBRATION_DIR}")
    elif sys.argv[1:] == ["record"]:
        print(f"{record()} judges recorded in {CALIBRATION_DIR / RECORDED}")
    else:
        raise SystemExit(__doc__)
