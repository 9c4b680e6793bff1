"""Pretraining of one part of the model in one process: the VAE, or the joint encoder as a captioner.

It runs on the training loop with the plain engine: a killed run resumes with the same losses.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from lookalike import config as configs
from lookalike.models.batch import Batch
from lookalike.models.joint import encoder_inputs
from lookalike.storage import Store, open_store, read_lines
from lookalike.tracking import open_tracker
from lookalike.training import checkpoint
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig
from lookalike.training.engine import MASTER, PlainEngine
from lookalike.training.epoch_plan import EpochPlan
from lookalike.training.history import METRICS, History
from lookalike.training.loop import Loop
from lookalike.training.loop_config import CheckpointConfig, ValidationConfig
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.optimizer import STATE_NAMES, OptimizerConfig
from lookalike.training.ranks import Rank
from lookalike.training.workers import WorkerConfig
from lookalike.values import Count, Positive, Seed, configuration

Metrics = dict[str, float]

_OF_EVERY_STEP = ("loss", "gradient_norm")
_SHOWN_EVERY = 20  # steps between two updates of the metrics on the progress bar


@configuration("fit")
class FitConfig:
    """How long and how fast a part is trained."""

    steps: Count = 4000
    """Optimizer steps."""
    batch_size: Count = 4
    """Images (or sequences) of a step."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of AdamW: reached after 2 % of the steps, then a cosine down to 2 % of it."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    save_every: Count = 100
    """Steps between two checkpoints."""
    threads: Count = 1
    """Threads of torch. On cores shared with other work, two are slower than one: they wait for each other."""
    seed: Seed = 0
    """Seed of initial weights, and of the order and augmentation of the data."""


def fit(
    model: nn.Module,
    loss: Callable[[np.random.Generator, int], tuple[Tensor, Metrics]],
    config: FitConfig,
    folder: Path,
    name: str = "train",
) -> Metrics:
    """Train ``model`` in place in one process, and return the mean metrics of the last ``save_every`` steps or fewer.

    To the training loop a step's batch is one sample, since its loss is a mean over pixels or tokens.

    Args:
        model: its trainable parameters are trained in float32.
        loss: samples the batch of a step with a generator of (seed, step); returns a scalar and further metrics.
        folder: keeps the run's checkpoints and ``metrics.jsonl``; an earlier attempt is resumed.
        name: of the part, on the progress bar.

    Raises TrainingDivergedError as the loop does, and InputError if ``folder`` is another configuration's.
    """
    torch.set_num_threads(config.threads)
    store, fingerprint = open_store(str(folder)), configs.fingerprint(configs.to_dict(config))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    run = _train_config(config)
    further: Metrics = {}
    _convert_earlier_state(folder, store, parameters, fingerprint)

    def objective(micro_batch: MicroBatch, _phase: PhaseConfig, _epoch: int) -> Tensor:
        step = int(micro_batch.columns["step"][0])
        value, metrics = loss(np.random.default_rng([config.seed, step]), step)
        further.update(metrics)
        return value.reshape(1)

    with tqdm(total=config.steps, desc=name, unit="step") as bar:

        def show(steps: int, metrics: Mapping[str, float]) -> None:
            bar.update(steps - bar.n)
            if steps % _SHOWN_EVERY == 0:
                bar.set_postfix({name: f"{metrics[name]:.3f}" for name in (*_OF_EVERY_STEP, *further)})

        Loop(
            config=run,
            rank=Rank(),
            engine=PlainEngine(model, parameters, run.optimizer, accumulation=1),
            objective=objective,
            plan=EpochPlan(num_samples=1, batch_size=1, seed=config.seed),
            store=store,
            history=History(store, open_tracker("none:", "none"), config.steps, write=True, listeners=[show]),
            fingerprint=fingerprint,
            base_sha256="",
            learning_rate=_learning_rate,
            objective_metrics=lambda: further,
        ).run(_micro_batches(range(checkpoint.newest(store), config.steps)))
    first = (config.steps - 1) // config.save_every * config.save_every
    window = [record for record in read_lines(store, METRICS, "step") if record["step"] >= first]
    return {name: float(np.mean([record[name] for record in window])) for name in (*_OF_EVERY_STEP, *further)}


def _train_config(config: FitConfig) -> TrainConfig:
    phase = PhaseConfig(
        name="part", steps=config.steps, conditions="mllm", learning_rate=config.learning_rate, warmup_steps=0
    )
    return TrainConfig(
        dataset="none",
        run="none",
        stages=[phase],
        batch_size=1,
        micro_batch_size=1,
        optimizer=OptimizerConfig(betas=(0.9, 0.98), weight_decay=config.weight_decay),
        validation=ValidationConfig(samples=0),
        checkpoint=CheckpointConfig(every=config.save_every, keep=1),
        workers=WorkerConfig(num_workers=0),
        log_every=config.save_every,
    )


def _learning_rate(phase: PhaseConfig, position: int) -> float:
    share = position / phase.steps
    return phase.learning_rate * (min(1.0, 50 * share + 0.02) * float(0.51 + 0.49 * np.cos(np.pi * share)))


def _micro_batches(steps: range) -> Iterator[MicroBatch]:
    for step in steps:
        columns = {"step": [step], "sample_id": [f"step-{step}"], "weight": np.ones(1, np.float32)}
        yield MicroBatch({name: np.array(values) for name, values in columns.items()})


def _convert_earlier_state(folder: Path, store: Store, parameters: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write ``state.safetensors``, in which earlier versions kept an unfinished run, as its first checkpoint."""
    checkpoints, path = store.child(checkpoint.CHECKPOINTS), folder / "state.safetensors"
    if not path.is_file() or checkpoint.committed_steps(checkpoints):
        return
    with safe_open(path, framework="pt") as state:
        step = int(state.metadata()["step"])
        tensors = {
            f"{kind}/{name}": state.get_tensor(f"{'model' if kind == MASTER else kind}.{name}")
            for name in parameters
            for kind in (MASTER, *STATE_NAMES)
        }
    checkpoint.write(checkpoints, checkpoint.CheckpointState(step, fingerprint, base_sha256=""), [tensors])
    path.unlink()


def vae_loss(vae: Any, images: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
    """Compute the VAE's loss on ``images`` (uint8 ``[B, 3, H, W]``): L1 + squares + edges + a little KL.

    ``noise`` float32 ``[B, C, h, w]`` samples the posterior. Pixels are compared in [-1, 1].
    """
    pixels = images.float() / 127.5 - 1
    posterior = vae.encode(pixels, return_dict=False)[0]
    output = vae.decode(posterior.mean + posterior.std * noise, return_dict=False)[0]
    difference = output - pixels
    edges = torch.diff(difference, dim=-1).abs().mean() + torch.diff(difference, dim=-2).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    value = difference.abs().mean() + difference.square().mean() + 0.5 * edges + 2e-4 * kl
    return value, {"l1": difference.abs().mean().item(), "kl": kl.item()}


@torch.no_grad()
def normalise_latents(vae: Any, images: Tensor) -> None:
    """Set shift and scaling factors so that the scaled latents of ``images`` have mean 0 and deviation 1."""
    latents = torch.cat([_encode(vae, part) for part in images.split(32)])
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 5), scaling_factor=round(1 / latents.std().item(), 5)
    )


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor) -> Tensor:
    """Encode and decode uint8 ``[B, 3, H, W]`` with the VAE; returns the same shape and type."""
    parts = [vae.decode(_encode(vae, part), return_dict=False)[0] for part in images.split(32)]
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _encode(vae: Any, images: Tensor) -> Tensor:
    latents: Tensor = vae.encode(images.float() / 127.5 - 1, return_dict=False)[0].mode()
    return latents


def psnr(images: Tensor, others: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB over uint8 images ``[B, 3, H, W]``."""
    squares = (images.float() - others.float()).square().flatten(1).mean(1).clamp_min(1e-3)
    return float((10 * torch.log10(255**2 / squares)).mean())


def caption_loss(mllm: Any, batch: Batch) -> tuple[Tensor, Metrics]:
    """Compute the next-token loss of the prompt after its images, by a transformers model with a language head."""
    logits, targets = _predictions(mllm, batch)
    value = nn.functional.cross_entropy(logits, targets)
    return value, {"accuracy": (logits.argmax(-1) == targets).float().mean().item()}


@torch.no_grad()
def caption_accuracy(mllm: Any, batches: list[Batch], groups: Mapping[str, set[int]]) -> Metrics:
    """Return the share of prompt tokens predicted from the true ones before them: of all, and of each group."""
    logits, targets = zip(*(_predictions(mllm, batch) for batch in batches), strict=True)
    right, target = torch.cat(logits).argmax(-1) == torch.cat(targets), torch.cat(targets)
    accuracy = {"all": right.float().mean().item()}
    for name, ids in groups.items():
        chosen = torch.isin(target, torch.tensor(sorted(ids)))
        accuracy[name] = right[chosen].float().mean().item()
    return accuracy


def _predictions(mllm: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits ``[N, V]`` and the N text tokens that they predict: those after each row's last image."""
    hidden = mllm.base_model(**encoder_inputs(mllm.config, batch), use_cache=False).last_hidden_state
    real_image = batch.image_mask & batch.attention_mask
    position = torch.arange(batch.input_ids.shape[1])
    last_image = torch.where(real_image, position, 0).amax(1, keepdim=True)
    text = batch.attention_mask & (position > last_image + 1)  # + 1: the mark that ends the image
    text[:, 0] = False  # nothing precedes the first token
    logits = mllm.lm_head(hidden[:, :-1][text[:, 1:]])
    return logits, batch.input_ids[:, 1:][text[:, 1:]]
