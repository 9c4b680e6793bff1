"""Teach a preset's small parts what images and captions are, before the whole model is trained."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from lookalike.bundles.build import materialise
from lookalike.bundles.load import load_preprocessor
from lookalike.config import fingerprint, to_dict
from lookalike.data.images import EXTENSIONS, decode
from lookalike.data.passed_over import PassedOver
from lookalike.data.shards import BrokenTarError, iter_samples, open_object
from lookalike.errors import InputError, UnreachableError, describe
from lookalike.models.batch import Batch, to_batch
from lookalike.models.components import NO_CODE
from lookalike.models.preprocess import check_image
from lookalike.models.presets import load_preset
from lookalike.models.vae import downsampling
from lookalike.pixels import crop_resize
from lookalike.scratch import scratch
from lookalike.storage import open_store, read_object
from lookalike.storage.claim import claim
from lookalike.storage.results import read_result, write_result
from lookalike.training import parts
from lookalike.values import check_values
from pipelines.ingest.sample import shapes, vocabulary
from pipelines.pretrain import pictures

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
_MOST_LEFT_OUT = 0.1  # share of the samples that may be unreadable
_NAMED = 5  # samples in a message
_HELD_OUT = 16  # one subject of so many is kept for measuring
_MEASURED = 256  # images that a figure is measured on


@dataclass(frozen=True)
class PretrainConfig:
    """Which part, from which shards, for how long."""

    part: Literal["vae", "mllm"]
    """`vae`: reconstruct images; `mllm`: say what they show."""
    raw: str
    """URI of raw shards (ingest's), best of a large sample world."""
    out: str
    """Local folder: the part goes to `<out>/<part>` in its library's format, the run's state to `<out>/<part>-run`."""
    preset: str = "mini"
    """Preset (name or YAML file) whose configuration of the part is trained."""
    photographs: float = 0.35
    """Share of the VAE's images that are crops of scikit-image's photographs instead."""
    window_px: int = 32
    """The VAE is convolutional: for the first 80 % of its steps it sees twice `fit.batch_size` windows of this side,
    at half the cost of whole images; the rest, on whole images, settles what depends on their size."""
    fit: parts.FitConfig = field(default_factory=parts.FitConfig)
    """The loop."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class _Subject:
    images: list[Pixels]
    captions: list[str]


def pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Train the part, measure it on held-out subjects, save it; returns and records what was measured.

    Raises:
        InputError: no usable image in the shards.
        ConflictError: ``out`` holds a run of another configuration.
    """
    out = Path(config.out)
    run = out / f"{config.part}-run"
    claimed = claim(open_store(str(run)), to_dict(config))
    if (run / "result.json").is_file():
        logger.info("%s is complete already", run)
        result = read_result(open_store(str(run)), "result.json", claimed, {})
        return result or read_object(open_store(str(run)), "result.json")
    with scratch("pretrain") as folder:
        initial = _initial_bundle(config, folder / "bundle")
        train, held_out = _read(config)
        measure = _pretrain_vae if config.part == "vae" else _pretrain_mllm
        result = measure(config, initial, train, held_out, run)
    write_result(open_store(str(run)), "result.json", result, claimed)
    return result


def _initial_bundle(config: PretrainConfig, folder: Path) -> Path:
    """A bundle from the seed: whatever the preset ships for the part is left aside."""
    fresh = load_preset(config.preset).from_seed("mllm", "vae", "transformer", "aggregator")
    return materialise(fresh, folder, config.fit.seed)


def _read(config: PretrainConfig) -> tuple[list[_Subject], list[_Subject]]:
    """All subjects of the shards, their images in memory at twice the model's size: (train, held out)."""
    preset = load_preset(config.preset)
    store = open_store(config.raw)
    listing = list(store.list())
    shards = [info for info in listing if info.key.lower().endswith(".tar")]
    if len(shards) < len(listing):
        others = [info.key for info in listing if info not in shards]
        logger.warning("passed over: %d of %d objects are not a .tar, such as %s", len(others), len(listing), others[0])
    passed_over = PassedOver()
    subjects: dict[str, _Subject] = {}
    left_out: list[str] = []
    total = 0
    for info in tqdm(shards, desc="read", unit="shard"):
        try:
            for sample, members in iter_samples(open_object(store, info), passed_over):
                total += 1
                try:
                    name, caption, image = _sample(members, 2 * preset.height, 2 * preset.width)
                except (UnreachableError, MemoryError):
                    raise
                except Exception as error:  # whatever a decoder raises for the bytes of this one
                    left_out.append(f"{info.key}/{sample.key} ({describe(error)[:200]})")
                    continue
                subject = subjects.setdefault(name, _Subject([], []))
                subject.images.append(image)
                subject.captions.append(caption)
        except BrokenTarError as error:
            total += 1
            left_out.append(f"{info.key} ({error.what})")
    if passed_over.counts:
        logger.warning("passed over: members of no sample: %s", dict(passed_over.counts))
    if left_out:
        logger.warning("%d of %d samples are left out: %s", len(left_out), total, "; ".join(left_out[:_NAMED]))
    if len(left_out) > _MOST_LEFT_OUT * total:
        raise InputError(
            f"{len(left_out)} of {total} samples cannot be read, at most {_MOST_LEFT_OUT:.0%} may: "
            + "; ".join(left_out[:_NAMED]),
            value=config.raw,
            fix="ingest the photos again",
        )
    held_out = {name for name in subjects if int(fingerprint(name)[:8], 16) % _HELD_OUT == 0}
    train = [subjects[name] for name in sorted(subjects) if name not in held_out]
    if not train or not held_out:
        raise InputError("too few subjects in the shards", value=config.raw, fix="ingest a world of 100 or more")
    return train, [subjects[name] for name in sorted(held_out)]


def _sample(members: dict[str, bytes], height: int, width: int) -> tuple[str, str, Pixels]:
    """Subject, caption and image of a raw sample.

    Raises:
        InputError: one of them is missing, or the image does not decode.
    """
    encoded = next((data for name, data in members.items() if name in EXTENSIONS), None)
    if encoded is None or "json" not in members:
        raise InputError("the sample lacks an image or a json", value=sorted(members), fix="ingest the photo again")
    meta = json.loads(members["json"])
    subject, caption = meta.get("subject"), meta.get("caption")
    if not isinstance(subject, str) or not isinstance(caption, str):
        raise InputError("subject or caption is not text", value=str(subject)[:80], fix="ingest the photo again")
    image = decode(encoded)
    check_image(image, "photo")
    return subject, caption, crop_resize(image, height, width)


def _pretrain_vae(
    config: PretrainConfig, initial: Path, train: list[_Subject], held_out: list[_Subject], run: Path
) -> dict[str, Any]:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(initial / "vae").train()
    world = [image for subject in train for image in subject.images]
    photographs = pictures.photographs() if config.photographs > 0 else []
    side = load_preset(config.preset).height

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, parts.Figures]:
        whole = step >= 0.8 * config.fit.steps
        images = [
            pictures.vary(photographs[rng.integers(len(photographs))], side, rng)
            if rng.random() < config.photographs
            else pictures.zoom(world[rng.integers(len(world))], side, rng)
            for _ in range(config.fit.batch_size * (1 if whole else 2))
        ]
        if not whole:
            images = [pictures.window(image, min(side, config.window_px), rng) for image in images]
        latent_side = images[0].shape[0] // downsampling(vae)
        shape = (len(images), vae.config.latent_channels, latent_side, latent_side)
        return parts.vae_loss(vae, _tensor(images), torch.from_numpy(rng.standard_normal(shape, np.float32)))

    last = _fit(vae, loss, config, run)
    vae.eval()
    rng = np.random.default_rng(config.fit.seed)
    seen = _tensor([crop_resize(world[i], side, side) for i in rng.choice(len(world), min(512, len(world)), False)])
    parts.normalise_latents(vae, seen)
    fresh = _tensor([crop_resize(image, side, side) for s in held_out for image in s.images][:_MEASURED])
    crops = _tensor([pictures.vary(photo, side, rng) for photo in photographs or world[:9] for _ in range(4)])
    vae.half().save_pretrained(Path(config.out) / "vae")
    vae.float()
    output, crops_output = parts.reconstruct(vae, fresh), parts.reconstruct(vae, crops)
    rows = [fresh[:24:2], output[:24:2], crops[:24:2], crops_output[:24:2]]
    pictures.save_grid(run / "reconstructions.png", [row.numpy() for row in rows])
    return {
        "last": last,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "psnr_db_held_out_subjects": parts.psnr(fresh, output),
        "psnr_db_photograph_crops": parts.psnr(crops, crops_output),
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": vae.config.shift_factor,
    }


def _pretrain_mllm(
    config: PretrainConfig, initial: Path, train: list[_Subject], held_out: list[_Subject], run: Path
) -> dict[str, Any]:
    import transformers
    from transformers import AutoTokenizer

    preset = load_preset(config.preset)
    preprocessor = load_preprocessor(initial)
    mllm = getattr(transformers, preset.mllm.architecture).from_pretrained(initial / "mllm").train()

    def batch(subjects: list[_Subject], rng: np.random.Generator, size: int) -> Batch:
        prompts, references = [], []
        for _ in range(size):
            subject = subjects[rng.integers(len(subjects))]
            count = min(int(rng.integers(1, preset.references.max_references + 1)), len(subject.images))
            chosen = rng.choice(len(subject.images), count, replace=False)
            prompts.append(" ; ".join(subject.captions[i] for i in chosen))
            side = preset.mllm.image_size
            references.append([pictures.jitter(subject.images[i], side, rng) for i in chosen])
        return to_batch(preprocessor(prompts, references, truncate_prompts=True))

    def loss(rng: np.random.Generator, step: int) -> tuple[Tensor, parts.Figures]:
        return parts.caption_loss(mllm, batch(train, rng, config.fit.batch_size))

    last = _fit(mllm, loss, config, run)
    mllm.eval()
    rng = np.random.default_rng(config.fit.seed)
    tokenizer = AutoTokenizer.from_pretrained(initial / "mllm", **NO_CODE)
    groups = {name: set(tokenizer.convert_tokens_to_ids(words)) for name, words in _word_groups().items()}
    fresh = [batch(held_out, rng, 32) for _ in range(_MEASURED // 32)]
    target = Path(config.out) / "mllm"
    mllm.half().save_pretrained(target)
    mllm.float()
    _say_float32(target / "config.json")
    for file in sorted((initial / "mllm").iterdir()):
        if not (target / file.name).exists():
            (target / file.name).write_bytes(file.read_bytes())
    return {
        "last": last,
        "parameters": sum(p.numel() for p in mllm.parameters()),
        "token_accuracy_held_out_subjects": parts.caption_accuracy(mllm, fresh, groups),
    }


def _fit(
    model: Any,
    loss: Callable[[np.random.Generator, int], tuple[Tensor, parts.Figures]],
    config: PretrainConfig,
    run: Path,
) -> parts.Figures:
    with tqdm(total=config.fit.steps, desc=config.part, unit="step") as bar:

        def report(step: int, figures: parts.Figures) -> None:
            bar.update(step - bar.n)
            if step % 20 == 0:
                bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})

        return parts.fit(model, loss, config.fit, run, report)


def _tensor(images: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def _word_groups() -> dict[str, list[str]]:
    """Words of the sample world by what they speak of; whichever of them the captions do not use counts nothing."""
    return {
        "colour": list(vocabulary.COLOURS),
        "class": sorted({word for name in shapes.names() for word in name.split()}),
        "pattern": ["striped", "checked", "spots", "half", "patched"],
        "place": [
            "grass",
            "sand",
            "snow",
            "wooden",
            "water",
            "cobblestone",
            "leaves",
            "carpet",
            "tiled",
            "brick",
            "night",
        ],
        "view": ["front", "right", "behind", "left", "above"],
    }


def _say_float32(path: Path) -> None:
    """Half precision is for the file only: transformers would compute in the type that ``config.json`` names."""
    text = path.read_text()
    path.write_text(text.replace('"dtype": "float16"', '"dtype": "float32"'))
