"""Start and stop a local stack: a Ray head, an S3 server (SeaweedFS) and an MLflow server.

    python infra/local/stack.py up          # starts services that do not run, and waits until they answer
    source .local/env                       # addresses and keys, for jobs and for `ray job submit`
    python infra/local/stack.py status
    python infra/local/stack.py down        # stops the services that `up` started

The first `up` chooses free ports, and later ones keep them. Data, logs and keys are in the state folder (.local; delete
it to start anew), which no other user can enter. S3 and MLflow listen on 127.0.0.1 and require the keys of the env
file. Some of Ray's ports always listen on every interface; they require the token of the env file.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import keys
import processes
import services
from services import SERVICES, Stack


def up(stack: Stack, wanted: list[str], num_cpus: int, object_store_mib: int, timeout_s: float) -> None:
    """Start the ``wanted`` services that do not run, and wait until each answers. Raises SystemExit otherwise."""
    commands = {
        "s3": services.s3_command(stack),
        "mlflow": services.mlflow_command(stack),
        "ray": services.ray_command(stack, num_cpus, object_store_mib),
    }
    for service in wanted:
        if processes.find(service, stack.folder) is None:
            if not services.is_free(port := stack.ports[service]):
                raise SystemExit(f"error: port {port} of {service} is in use; choose another --state folder")
            environment = _environment(stack)
            if service == "ray":
                environment["TMPDIR"] = str(services.temporary_folder(stack))
            processes.start(service, commands[service], environment, stack.folder)
    deadline = time.monotonic() + timeout_s
    for service in wanted:
        while not services.answers(stack, service):
            if processes.find(service, stack.folder) is None or time.monotonic() > deadline:
                log = processes.log_path(service, stack.folder)
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise SystemExit(f"error: {service} does not answer; the end of {log}:\n{tail}")
            time.sleep(0.2)


def status(stack: Stack) -> bool:
    """Print one line for each service; return whether all running services answer."""
    healthy = True
    for service in SERVICES:
        process = processes.find(service, stack.folder)
        state = "stopped" if process is None else "answers" if services.answers(stack, service) else "does not answer"
        healthy &= state != "does not answer"
        print(f"{service:8}{state:18}{stack.url(service):28}{f'pid {process.pid}' if process else ''}")
    return healthy


def main() -> int:
    """Parse the flags, and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--state", type=Path, default=Path(".local"), help="folder for data, logs and keys (.local)")
    parser.add_argument("--services", default=",".join(SERVICES), help="some of s3,mlflow,ray (default: all)")
    parser.add_argument(
        "--port",
        action="append",
        default=[],
        metavar="NAME=N",
        help=f"fixed port, at the first `up`: {', '.join(services.PORTS)}",
    )
    parser.add_argument("--num-cpus", type=int, default=max(4, os.cpu_count() or 1), help="logical CPUs of Ray")
    parser.add_argument("--object-store-mib", type=int, default=1024, help="Ray's shared memory (1024)")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="seconds to wait for answers (120)")
    options = parser.parse_args()
    wanted = [service for service in SERVICES if service in options.services.split(",")]
    if unknown := set(options.services.split(",")) - set(SERVICES):
        parser.error(f"unknown services {sorted(unknown)}; choose from {SERVICES}")
    folder = options.state.absolute()
    stack = services.load(folder)

    if options.command == "up":
        ports = {name: int(number) for name, _, number in (port.partition("=") for port in options.port)}
        if stack is None:
            stack = services.create(folder, ports)
        elif changed := {name for name, number in ports.items() if stack.ports.get(name) != number}:
            parser.error(f"the ports {sorted(changed)} of {folder} are fixed already; choose another --state folder")
        up(stack, wanted, options.num_cpus, options.object_store_mib, options.timeout_s)
        status(stack)
        print(f"source {shlex.quote(str(folder / 'env'))}")
        return 0
    if stack is None:
        print(f"no stack in {folder}")
        return 0 if options.command == "down" else 1
    if options.command == "down":
        ended = 0
        for service in reversed(wanted):
            ended += processes.stop(service, folder)
            services.clean(stack, service)
        print(f"{ended} processes stopped; the data stays in {folder}")
        return 0
    return 0 if status(stack) else 1


def _environment(stack: Stack) -> dict[str, str]:
    """The environment of the services, which jobs on the Ray head inherit."""
    binaries = Path(sys.executable).parent  # the `python` of a submitted job is the first one on the head's PATH
    environment = {**os.environ, **stack.environment(), **keys.server_environment(stack.folder, stack.secret)}
    del environment["RAY_ADDRESS"], environment["RAY_API_SERVER_ADDRESS"]  # for clients only
    return environment | {
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # two processes and 0.5 GB instead of fifteen and 2.9 GB
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else idle workers of ended jobs delay `down` by 30 s
    }


if __name__ == "__main__":
    raise SystemExit(main())
