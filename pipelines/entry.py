"""The frame of every job: parse the configuration, set up logging, turn errors into messages and exit codes."""

import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar, get_type_hints

from tenacity import before_sleep_log, retry, retry_if_exception_message, stop_after_attempt

from lookalike import config as configs
from lookalike.errors import BusyError, LookalikeError, StoppedError, UnreachableError, first_line
from lookalike.redaction import redact, redact_logs
from lookalike.scratch import JOB_VARIABLE, kept_folder, sweep
from pipelines.private_ray import fresh_token, session_folder

log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT")

EXIT_ERROR = 2  # what argparse uses for a bad command line: the user can fix it
EXIT_REFUSED = 3  # the gate refused, and the caller asked for this code
EXIT_INTERNAL = 1  # an unexpected error
EXIT_BUSY = 4  # another process works on the same output
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_PIPE = 141  # 128 + SIGPIPE
EXIT_STOPPED = 143  # 128 + SIGTERM, as a shell reports it: not done, and nothing is wrong
OPT_OUT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # read when onnxruntime is imported, which diffusers does
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variables that stop libraries from reporting their use; a cluster that a job joins needs them in its environment."""
_TYPED = "LOOKALIKE_ARGUMENTS"  # the original arguments, for the process that replaces this one
_WORKERS_END_S = 5.0  # in which Ray's workers end after the job, and leave their temporary folders to be removed


def run_job(config_class: type[ConfigT], body: Callable[[ConfigT], int | None], description: str | None) -> int:
    """Parse ``config_class`` from the command line, call ``body`` and return the exit code."""
    return _framed(lambda: body(configs.parse(config_class, description=description)))


def run_subcommand(commands: Mapping[str, Callable[..., int | None]], description: str | None) -> int:
    """Parse a subcommand and its configuration, call its function and return the exit code.

    The only parameter of each function in ``commands`` is annotated with the class of its configuration.
    """

    def body() -> int | None:
        classes = {name: next(iter(get_type_hints(command).values())) for name, command in commands.items()}
        name, config = configs.parse_command(classes, description=description)
        return commands[name](config)

    return _framed(body)


def _framed(body: Callable[[], int | None]) -> int:
    """Call ``body`` in the frame of a job: logging, temporary folder, signals, exit codes."""
    redact_logs()
    logging.basicConfig(
        level=os.environ.get("LOOKALIKE_LOG_LEVEL", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    _hide_command_line()
    for noisy in ("httpx", "alembic", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or pipe whose encoding lacks a character of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    os.environ[JOB_VARIABLE] = job = uuid.uuid4().hex
    _end_on_sigterm()
    try:
        return _run(body)
    finally:
        sweep(job, wait_s=_WORKERS_END_S)


def _run(body: Callable[[], int | None]) -> int:
    try:
        _set_defaults()
        code = body() or 0
        sys.stdout.flush()  # raises BrokenPipeError if the reader has ended
        return code
    except KeyboardInterrupt:
        _say("interrupted; the same command resumes")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # of `| head`: the reader has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return EXIT_PIPE
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    """Print an exception in one line, and return the exit code; the traceback goes to the DEBUG log."""
    while isinstance(cause := getattr(error, "cause", None), Exception):  # of a task of Ray
        error = cause
    if isinstance(error, (StoppedError, BusyError)):
        _say(str(error))
        return EXIT_STOPPED if isinstance(error, StoppedError) else EXIT_BUSY
    log.debug("traceback of the error", exc_info=True)
    problem = first_line(error)
    if isinstance(error, LookalikeError):
        _say(f"error: {error}")
        return EXIT_ERROR
    if isinstance(error, MemoryError):
        _say("error: out of memory; use a machine with more, or lower the batch size")
    elif isinstance(error, OSError):
        _say(f"error: the operating system refused: {problem or type(error).__name__}; fix that and run it again")
    else:
        what = f"internal error, {type(error).__name__}: {problem}"
        _say(f"error: {what}; please report it, with its traceback by LOOKALIKE_LOG_LEVEL=DEBUG")
    return EXIT_INTERNAL


def _set_defaults() -> None:
    """Set what the user has not set: no telemetry, and PyTorch's compiled kernels in the job's temporary folder."""
    for name, value in OPT_OUT.items():
        os.environ.setdefault(name, value)
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # made at import, by DeepSpeed too
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept_folder("inductor"))


def _say(message: str) -> None:
    """Print to standard error, with any characters, also if its reader has ended."""
    with suppress(OSError):
        print(redact(message).encode("utf-8", "backslashreplace").decode(), file=sys.stderr)


def _end_on_sigterm() -> None:
    """Make SIGTERM unwind the stack, so that temporary folders and Ray's processes end with the job."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_STOPPED))


def _hide_command_line() -> None:
    """Remove secrets from this process's command line, which every user of the machine and Ray's job table can read.

    The process starts itself again with ``***`` in their place, and reads the original arguments from a variable that
    it clears.
    """
    typed = os.environ.pop(_TYPED, None)
    if typed is not None:
        sys.argv[1:] = json.loads(typed)
        return
    arguments = sys.argv[1:]
    hidden = [redact(argument) for argument in arguments]
    at = len(sys.orig_argv) - len(arguments)
    if hidden == arguments or sys.orig_argv[at:] != arguments:  # or these are not the process's own arguments
        return
    log.warning(
        "the command line holds a password, which is visible while the job starts; set it as "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
    )
    sys.stdout.flush()
    os.execve(sys.executable, [*sys.orig_argv[:at], *hidden], {**os.environ, _TYPED: json.dumps(arguments)})


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS (set inside ``ray job submit``), or start a private one for this process.

    A cluster is joined with the token that the user's environment names; a private one gets its own.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
        folder = None
        if address == "local":
            stack.enter_context(fresh_token())
            folder = stack.enter_context(session_folder())
        try:
            _knock(address)
            _init(address, folder)
        except OSError as error:  # ConnectionError is one
            raise UnreachableError(
                "Ray does not answer", value=address, fix="check RAY_ADDRESS, and RAY_AUTH_MODE with its token"
            ) from error
        stack.callback(ray.shutdown)
        yield


patient = retry(
    retry=retry_if_exception_message(match="The current node timed out during startup"),
    stop=stop_after_attempt(3),
    before_sleep=before_sleep_log(log, logging.WARNING),
    reraise=True,
)
"""Retry the start of a Ray node if its agents missed Ray's limit of 15 s, as on a busy machine."""


@patient
def _init(address: str, folder: str | None) -> None:
    """Join the cluster at ``address``, or start one (``local``) whose files lie in ``folder``."""
    import psutil  # comes with Ray
    import ray

    before = set(psutil.Process().children())
    options: dict[str, Any] = {}
    if address == "local":
        # a private cluster ends with its job, and its dashboard is half of its processes
        options = {"include_dashboard": False, "_temp_dir": folder}
    try:
        # "local": without an address Ray joins whatever cluster somebody has started on this machine
        ray.init(address, log_to_driver=True, logging_level=logging.WARNING, **options)
    except Exception:
        for process in set(psutil.Process().children()) - before:  # Ray leaves them until we end
            process.kill()
        raise


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at ``host:port``: Ray itself would retry for more than ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
