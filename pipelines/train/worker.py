"""One rank: build the engine, read the prepared samples, run the loop."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from lookalike.bundles.load import build_model, load_model
from lookalike.bundles.manifest import read_preset
from lookalike.bundles.transfer import local_bundle
from lookalike.diffusion.flow import FlowConfig
from lookalike.models.joint import import_model_classes
from lookalike.models.subject import SubjectModel
from lookalike.models.vae import load_vae
from lookalike.models.weights import strict_weights
from lookalike.process_wide import alone_in_process
from lookalike.progress.events import EventLog
from lookalike.storage import open_store
from lookalike.storage.lease import Fence
from lookalike.tracking import Tracker, open_resilient
from lookalike.training import checkpoint
from lookalike.training.clock import StepClock
from lookalike.training.config import TrainConfig
from lookalike.training.curriculum import PhaseConfig, phase_at
from lookalike.training.deepspeed_setup import import_deepspeed, prepare_process
from lookalike.training.engine import Engine, PlainEngine
from lookalike.training.export import export_bundle
from lookalike.training.history import History, Listener
from lookalike.training.loop import Evaluation, Loop
from lookalike.training.micro_batch import MicroBatch
from lookalike.training.objective import DenoisingObjective, HeldOutLoss
from lookalike.training.previews import HeldOutImages
from lookalike.training.quarantine import failures
from lookalike.training.ranks import Rank
from lookalike.training.trainable import adapter_of, add_loras, trainable_parts
from lookalike.training.workload import Workload, peak_tflops
from lookalike.training.zero import ZeroEngine
from pipelines.train.in_memory import ahead, kept_batches
from pipelines.train.observe import RayMetrics, TrackedImages, progress_bar, ray_runs, step_events
from pipelines.train.samples import Columns, prepare, validation_indices
from pipelines.train.settings import LEASE, WorkerSettings

log = logging.getLogger(__name__)


def run_rank(settings: WorkerSettings, rank: Rank) -> None:
    """Train and export, as ``rank`` of a process group, or alone without DeepSpeed if ``num_workers`` is 0.

    Raises what :meth:`Loop.run` raises.
    """
    config, plain = settings.config, settings.config.workers.num_workers == 0
    device = torch.device("cuda", torch.cuda.current_device()) if config.workers.use_gpu else torch.device("cpu")
    if not config.workers.use_gpu:
        torch.set_num_threads(config.workers.threads_per_worker)
    elif config.workers.tf32:
        torch.set_float32_matmul_precision("high")
    if plain and config.precision != "float32":
        # Not known to work: bfloat16 trains on an H200 without cuDNN's attention; with it a backward pass failed once,
        # for which a matrix product with one column may be the cause as well.
        torch.backends.cuda.enable_cudnn_sdp(False)
    store = open_store(config.run)
    fence = Fence(store.child(LEASE), settings.lease)
    fence.check()  # before a group that Ray Train has restarted begins
    batches = first_read(rank_batches(settings, rank))
    import_model_classes()
    if not plain:
        import_deepspeed(device)
    started = time.perf_counter()
    bundle = local_bundle(settings.source.bundle_uri, settings.base_sha256)
    engine = _engine(config, bundle, device)
    if rank.is_first:
        log.info("the model is built in %.1f s", time.perf_counter() - started)
    objective = DenoisingObjective(
        engine.model, load_vae(bundle).to(device), FlowConfig.from_bundle(bundle), config.dropout, config.seed, device
    )
    if plain and device.type == "cuda":
        batches = _computed_ahead(batches, objective, settings)
    with opened_loop(settings, rank, engine, objective, bundle) as loop:
        loop.run(batches)
    if rank.is_first:  # its process has imported what the export needs
        export_bundle(config, store, config.total_steps, fence.check)


@contextmanager
def opened_loop(
    settings: WorkerSettings, rank: Rank, engine: Engine, objective: DenoisingObjective, bundle: Path
) -> Iterator[Loop]:
    """Yield the loop of a run, with its tracker, listeners and evaluations; ``bundle`` is the folder of its base."""
    config, store, device = settings.config, open_store(settings.config.run), objective.device
    with (
        open_resilient(
            config.tracking, config.experiment, run_id=settings.tracking_run, enabled=rank.is_first, spool=store
        ) as tracker,
        _listeners(settings, rank) as listeners,
    ):
        held_out = _validation_batches(settings, rank)
        history = History(
            store, tracker, config.total_steps, write=rank.is_first, submitted=settings.submitted, listeners=listeners
        )
        evaluations: list[tuple[int, Evaluation]] = []
        if held_out:
            validate = HeldOutLoss(objective, held_out, rank.sum)

            def record(phase: PhaseConfig, steps: int) -> None:
                history.add_validation(steps - 1, phase.name, validate(phase))

            evaluations.append((config.validation.every, record))
        if config.images.count:
            evaluations.append((config.images.every, _images(settings, bundle, objective, rank, tracker)))
        loop = Loop(
            config=config,
            rank=rank,
            engine=engine,
            objective=objective,
            plan=settings.plan,
            store=store,
            history=history,
            fingerprint=settings.fingerprint,
            base_sha256=settings.base_sha256,
            evaluations=evaluations,
            workload=_workload(config, bundle, device),
            clock=StepClock(device),
            fence=Fence(store.child(LEASE), settings.lease),
        )
        failed = [failure for columns in held_out for failure in failures(columns, 0)]
        loop.quarantine.add_held_out(failed, sum(int(columns["weight"].sum()) for columns in held_out))
        yield loop


def _engine(config: TrainConfig, bundle: Path, device: torch.device) -> Engine:
    def select(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
        assert isinstance(model, SubjectModel)
        add_loras(config, model)
        if config.activation_checkpointing:
            model.enable_gradient_checkpointing()
        return model.set_trainable(trainable_parts(config))

    if config.workers.num_workers > 0:
        prepare_process(device)
        return ZeroEngine(lambda: build_model(bundle), lambda model: strict_weights(model, bundle), select, config)
    model = load_model(bundle).to(device)
    return PlainEngine(model, select(model), config.optimizer, config.accumulation(1), config.ema, config.precision)


def rank_batches(settings: WorkerSettings, rank: Rank) -> Iterator[MicroBatch]:
    """Yield this rank's micro batches in order, from the newest checkpoint on."""
    config, read = settings.config, kept_batches
    if not config.keep_samples:
        from pipelines.train.data import rank_batches as read
    steps = range(checkpoint.newest(open_store(config.run)), config.total_steps)
    return map(MicroBatch, read(settings.source, settings.plan, steps, rank.index, rank.count, config.micro_batch_size))


def first_read(batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
    """Return the same batches; a thread reads the first one at once, while the caller builds its engine."""
    starter = ThreadPoolExecutor(max_workers=1)
    first = starter.submit(next, batches)
    starter.shutdown(wait=False)
    return chain(map(Future.result, [first]), batches)


def _computed_ahead(
    batches: Iterator[MicroBatch], objective: DenoisingObjective, settings: WorkerSettings
) -> Iterator[MicroBatch]:
    """Compute the host's share of the next micro batch while the GPU is busy; the VAE runs on a stream of its own."""
    stream = torch.cuda.Stream()

    def computed() -> Iterator[MicroBatch]:
        torch.cuda.set_device(objective.device)  # a new thread starts with the first device
        for columns in (micro_batch.columns for micro_batch in batches):
            step = int(columns["step"][0])
            phase = phase_at(settings.config.stages, step)[1]
            with torch.cuda.stream(stream):
                result = objective.compute_inputs(columns, phase, settings.plan.epoch_of(step))
            yield result

    return ahead(computed())


@contextmanager
def _listeners(settings: WorkerSettings, rank: Rank) -> Iterator[list[Listener]]:
    listeners: list[Listener] = [RayMetrics(settings.config.run)] if rank.is_first and ray_runs() else []
    with ExitStack() as opened:
        if rank.is_first and settings.terminal:
            listeners.append(opened.enter_context(progress_bar(settings.config.total_steps)))
        if rank.is_first and settings.config.events is not None:
            log_of_request = EventLog(open_store(settings.config.events), settings.fingerprint)
            listeners.append(opened.enter_context(step_events(log_of_request, settings.config.total_steps)))
        yield listeners


def _workload(config: TrainConfig, bundle: Path, device: torch.device) -> Workload:
    peak = config.workers.peak_tflops
    if peak is None and device.type == "cuda":
        peak = peak_tflops(torch.cuda.get_device_name(device), config.precision)
    return Workload(read_preset(bundle), adapter_of(config), trainable_parts(config), peak)


def _images(
    settings: WorkerSettings, bundle: Path, objective: DenoisingObjective, rank: Rank, tracker: Tracker
) -> TrackedImages:
    from diffusers import FlowMatchEulerDiscreteScheduler

    config = settings.config.images
    source = replace(settings.source, split="validation", latents=False)  # references and target are shown, too
    each = -(-config.count // rank.count)
    mine = validation_indices(source, each * rank.count)[rank.index * each : (rank.index + 1) * each]
    with alone_in_process():
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(bundle / "scheduler")
    images = HeldOutImages(objective, prepare(source, mine), config, read_preset(bundle).stages, scheduler)
    return TrackedImages(images, rank, tracker)


def _validation_batches(settings: WorkerSettings, rank: Rank) -> list[Columns]:
    """This rank's share of the fixed validation samples, prepared once.

    Batches are formed before they are distributed over the ranks, so that the sample whose conditions replace another's
    (its neighbour in the batch) does not depend on the number of ranks. A batch has at least two samples.
    """
    config = settings.config
    if config.validation.samples == 0:
        return []
    source = replace(settings.source, split="validation")
    size = max(2, config.micro_batch_size)
    samples = max(1, config.validation.samples // (size * rank.count)) * size * rank.count
    batches = validation_indices(source, samples).reshape(-1, size)
    return [prepare(source, batch) for batch in batches[rank.index :: rank.count]]
