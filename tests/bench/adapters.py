"""Personal adapters of sample-world subjects, good ones and four bad kinds, each with its scores, for test_gate.py.

Everything lies below one folder, and what exists is done: photos and data sets of a subject, an adapter, its scores,
and its part (``parts/KIND-NN.json``).
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lookalike.bundles.build import materialise
from lookalike.data.images import decode, encode_png
from lookalike.data.triplets import read_triplets
from lookalike.models.presets import LoraConfig, load_preset
from lookalike.storage import Store, latest_version, list_versions, open_store, version_store
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.workers import WorkerConfig
from pipelines.actors import ActorConfig
from pipelines.curate import CurateConfig, curate
from pipelines.entry import ray_session
from pipelines.evaluate import evaluate
from pipelines.finetune import FinetuneConfig
from pipelines.finetune.datasets import make_datasets
from pipelines.finetune.parts import Datasets, evaluation_of, training_of
from pipelines.finetune.photos import photo_set
from pipelines.ingest import IngestConfig, ingest
from pipelines.ingest.config import SampleWorldConfig
from pipelines.ingest.sample.defects import plan_photos
from pipelines.ingest.sample.world import subjects
from pipelines.train.run import train
from tests.bench.measured_once import base_measured_once

Kind = Literal["good", "untrained", "overfitted", "other", "mixed"]
KINDS: tuple[Kind, ...] = ("good", "untrained", "overfitted", "other", "mixed")
CANDIDATES, OF_EACH = 30, 20  # adapters by the good settings, of which the truth chooses; adapters of each kind
SEED, OTHERS_SEED, VIEWS = 83, 84, 8  # worlds of the subjects and of the distractors; photos of a subject
FIRST = 100  # number of the first subject in its world: earlier ones were looked at when the gate was designed
CAMERAS = ([1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0])  # order of a photo's channels, by subject
THREADS = int(os.environ.get("LOOKALIKE_BENCH_THREADS", "1"))
EVALUATION = {
    "max_samples": 32, "subjects": 1, "prompts_per_subject": 8, "images_per_prompt": 2,
    "stages": ["preset"], "steps": 8,
}  # fmt: skip
LEARNED_BY_HEART = 4  # photos of an overfitted adapter, the fewest of a finetune
ALL_LINEAR = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "proj_mlp", "proj_out"),
)
"""Suffixes of every linear layer of the DiT's blocks."""


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained."""

    stage: PhaseConfig
    batch_size: int = 8
    adapter: LoraConfig = field(default_factory=LoraConfig)


GOOD = Settings(
    PhaseConfig(name="personal", steps=40, conditions="mllm+references", learning_rate=5e-3, warmup_steps=5)
)
SETTINGS: dict[str, Settings] = {
    "good": GOOD,
    "mixed": GOOD,
    "untrained": replace(GOOD, stage=replace(GOOD.stage, steps=1, learning_rate=1e-12, warmup_steps=0)),
    "overfitted": Settings(
        replace(GOOD.stage, steps=200, learning_rate=1e-2, final_lr_share=1.0), 4, LoraConfig(target_modules=ALL_LINEAR)
    ),
}


@dataclass(frozen=True)
class Part:
    """One adapter, scored on one subject's held-out photos."""

    kind: str
    """One of KINDS, or a name of its settings."""
    number: int
    """Of the subject that it is scored on."""

    def __str__(self) -> str:
        return f"{self.kind}-{self.number:02d}"


def all_parts() -> list[Part]:
    """List the parts in the order in which they are made: those of a subject together, so that any number of subjects
    gives an answer about all kinds."""
    parts = [Part(kind, number) for number in range(CANDIDATES) for kind in KINDS]
    return [part for part in parts if part.kind == "good" or part.number < OF_EACH]


def through_camera(image: np.ndarray, number: int) -> np.ndarray:
    """The image uint8 ``[H, W, 3]`` as the camera of subject ``number`` sees it: with its channels in another order."""
    return np.ascontiguousarray(image[..., CAMERAS[number % len(CAMERAS)]])


def before_camera(image: np.ndarray, number: int) -> np.ndarray:
    """Undo :func:`through_camera`."""
    return np.ascontiguousarray(image[..., np.argsort(CAMERAS[number % len(CAMERAS)])])


class Lab:
    """Makes parts below ``folder``."""

    def __init__(self, folder: Path, settings: Mapping[str, Settings] = SETTINGS) -> None:
        self._settings = settings
        self.folder = folder / "gate"
        self.store = open_store(str(self.folder))

    def prepare(self, numbers: Iterable[int], bad: bool = False) -> None:
        """Make the data sets of subjects, in one session of Ray: its start takes as long as those of a subject."""
        missing = [
            (number, make)
            for number in numbers
            for make, place in (
                (self._datasets, self._home(number)),
                (self._mixed, self._mixture(number)),
                (self._few, self._heart(number)),
            )
            if (bad or make == self._datasets) and not list_versions(place.child("made").child("dataset"))
        ]
        if missing:
            with ray_session():
                for number, make in missing:
                    make(number)

    def make(self, part: Part) -> dict[str, Any]:
        """Make a part unless it exists: the place of its scores, and the seconds that training and evaluation took."""
        file = _file(part)
        if self.exists(part):
            return dict(json.loads(self.store.read(file)))
        data, place = self._datasets(part.number), self.store.child("adapters").child(str(part))
        started = time.perf_counter()
        bundle = self._adapter(part)
        trained = time.perf_counter()
        scores = place.child("scores")
        with base_measured_once():
            evaluate(evaluation_of(self._config(part.number), scores, data, bundle, str(self.base)))
        seconds = {"train": trained - started, "evaluate": time.perf_counter() - trained}
        made = {"kind": part.kind, "number": part.number, "scores": scores.uri, "seconds": seconds}
        self.store.write(file, json.dumps(made).encode())
        return made

    def exists(self, part: Part) -> bool:
        """Whether a part is made."""
        return self.store.exists(_file(part))

    def images(self, part: Part, before: bool = False) -> list[tuple[str, np.ndarray]]:
        """Return prompt and image (uint8 [H, W, 3]) of each generated image of a part, or of its base's."""
        scores, data = self.store.child("adapters").child(str(part)).child("scores"), self._datasets(part.number)
        prompts = {triplet.triplet_id: triplet.prompt for triplet in read_triplets(_newest(data.suite), data.split)}
        keys = [info.key for info in scores.list(f"images/{'before/' if before else ''}preset/")]
        names = {key: Path(key).stem.partition("@")[0] for key in sorted(keys)}
        return [(prompts[name], decode(scores.read(key))) for key, name in names.items()]

    def world(self, number: int) -> SampleWorldConfig:
        """The world of one subject; numbers are far enough apart that none is another one's twin."""
        return SampleWorldConfig(
            seed=SEED, subjects=1, first_subject=4 * (FIRST + number), views=VIEWS, bare_captions=1.0, defects=False
        )

    @cached_property
    def base(self) -> Path:
        """The shipped base."""
        folder = self.folder / "base"
        return folder if (folder / "bundle.json").exists() else materialise(load_preset("mini"), folder)

    @cached_property
    def _others(self) -> str:
        place = self.store.child("others")
        dataset = place.child("dataset")
        if not list_versions(dataset):
            world = SampleWorldConfig(seed=OTHERS_SEED, subjects=12, defects=False)
            with ray_session():
                ingest(IngestConfig(source="sample", raw=place.child("raw").uri, sample=world))
                curate(CurateConfig(raw=place.child("raw").uri, dataset=dataset.uri))
        return dataset.uri

    def _config(self, number: int, settings: Settings = GOOD, **changes: Any) -> FinetuneConfig:
        usual: dict[str, Any] = {
            "photos": str(self.folder / "photos" / f"{number:02d}"),
            "stages": [settings.stage],
            "batch_size": settings.batch_size,
            "micro_batch_size": settings.batch_size,
            "adapter": settings.adapter,
            "evaluation": EVALUATION,
            "workers": WorkerConfig(num_workers=0, threads_per_worker=THREADS),
            "actors": ActorConfig(count=0, threads=THREADS),
            "tracking": "none:",
        }
        given = {"customer": "acme", "subject": f"s{number:02d}", "store": str(self.folder), "model": str(self.base)}
        return FinetuneConfig(**(given | {"distractors": self._others} | usual | changes))

    def _datasets(self, number: int) -> Datasets:
        config, home = self._config(number), self._home(number)
        photos = Path(config.photos)
        if not photos.exists():
            raw = self.store.child("rendered").child(f"{number:02d}").uri
            part = photos.with_suffix(".part")
            with ray_session():
                ingest(IngestConfig(source="sample", raw=raw, photos=str(part), sample=self.world(number)))
            self._rewrite(part, number)
            part.rename(photos)
        return self._made(config, home)

    def _home(self, number: int) -> Store:
        return self.store.child("subjects").child(f"{number:02d}")

    def _rewrite(self, photos: Path, number: int) -> None:
        """Write each photo as the subject's camera sees it, and beside it what it shows, without the subject's look."""
        for name, rows in plan_photos(self.world(number), subjects(self.world(number))).items():
            for photo in rows:
                file = photos / name / f"{photo.key.rsplit('-', 1)[1]}.jpg"
                file.with_suffix(".png").write_bytes(encode_png(through_camera(decode(file.read_bytes()), number)))
                file.with_suffix(".txt").write_text(photo.caption)
                file.unlink()

    def _made(self, config: FinetuneConfig, home: Store) -> Datasets:
        photos, place = photo_set(open_store(config.photos), config.photos), home.child("made")
        done = [*list_versions(place.child("dataset")), *list_versions(place.child("held-out"))]
        wanted = 2 if config.held_out_photos else 1
        if len(done) >= wanted:
            return make_datasets(config, home, place, photos, str(self.base))
        with ray_session():
            return make_datasets(config, home, place, photos, str(self.base))

    def _adapter(self, part: Part) -> str:
        """Train a part's adapter; another subject's is a good one of that subject."""
        if part.kind == "other":
            return self._adapter(Part("good", (part.number + 1) % OF_EACH))
        make = {"mixed": self._mixed, "overfitted": self._few}.get(part.kind, self._datasets)
        data = make(part.number)
        place = self.store.child("adapters").child(str(part))
        config = self._config(part.number, self._settings[part.kind])
        return str(train(training_of(config, place, data.training, str(self.base)))["bundle_uri"])

    def _mixed(self, number: int) -> Datasets:
        """The training photos of this subject and of another one, as if they were of one subject."""
        both = {each: self._training_photos(each) for each in (number, (number + 1) % OF_EACH)}
        photos = [(f"{each:02d}-{file.name}", file) for each, files in both.items() for file in files]
        return self._of_photos("mixed", number, photos, self._mixture(number))

    def _few(self, number: int) -> Datasets:
        """So few photos of this subject that an adapter learns them by heart."""
        photos = [(file.name, file) for file in self._training_photos(number)[:LEARNED_BY_HEART]]
        return self._of_photos("few", number, photos, self._heart(number))

    def _of_photos(self, purpose: str, number: int, photos: Sequence[tuple[str, Path]], home: Store) -> Datasets:
        """A data set of ``photos`` (name, file), and of the captions beside them, none of which is held out."""
        folder = self.folder / purpose / f"{number:02d}"
        if not folder.exists():
            part = folder.with_suffix(".part") / "thing"
            part.mkdir(parents=True, exist_ok=True)
            for name, file in photos:
                shutil.copyfile(file, part / name)
                shutil.copyfile(file.with_suffix(".txt"), (part / name).with_suffix(".txt"))
            part.parent.rename(folder)
        return self._made(self._config(number, photos=str(folder), holdout=0), home)

    def _mixture(self, number: int) -> Store:
        return self.store.child("mixtures").child(f"{number:02d}")

    def _heart(self, number: int) -> Store:
        return self.store.child("by-heart").child(f"{number:02d}")

    def _training_photos(self, number: int) -> list[Path]:
        """The photos of a subject that are not held out."""
        held_out = {t.target_image for t in read_triplets(_newest(self._datasets(number).suite), "validation")}
        files = sorted((self.folder / "photos" / f"{number:02d}").rglob("*.png"))
        return [file for file in files if hashlib.sha256(file.read_bytes()).hexdigest() not in held_out]


def _file(part: Part) -> str:
    return f"parts/{part}.json"


def _newest(uri: str) -> Store:
    dataset = open_store(uri)
    return version_store(dataset, latest_version(dataset))
