"""Several processes that train together: joining, telling each other things, waiting, stopping.

Everything here but `join` works for one process too, and then does nothing. What the processes say
to each other goes through the coordination service of `jax.distributed`, not through the devices:
waiting there for a slow process breaks no collective.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax

from jaxcomp.errors import JaxcompError
from jaxcomp.types import PyTree

HEARTBEAT_SECONDS = 30  # after which a silent process counts as dead
GRACE_SECONDS = 10  # for the others to end by the same error
PATIENCE_SECONDS = 5  # with this process, when another has failed; less than the grace
LEAVING_SECONDS = 2  # between saying that one ends and being gone, on a busy machine
LONG_SECONDS = 7 * 24 * 3600  # others may evaluate for days
LOOK_SECONDS = 2  # after which one that waits asks whether another has failed
_names = itertools.count()  # every message has a name of its own; all processes count alike


class ProcessError(JaxcompError):
    """Processes could not meet, disagree, or one of them is gone."""


def join(coordinator: str, count: int, index: int, *, timeout: int = 300) -> None:
    """Makes this process one of several; call it before anything is computed.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" where the cluster tells (TPU pods, Slurm,
        Open MPI, Kubernetes); then the other arguments are not used.
      count: processes.
      index: of this one, from 0.
      timeout: seconds to wait for the others.

    Raises:
      ProcessError: bad arguments, or the others did not come.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_collective_call_terminate" not in flags:
        # Processes on a CPU compile at their own pace; 40 seconds, the default, are not enough.
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_collective_call_terminate_timeout_seconds=900"
    options: dict[str, Any] = {}
    if coordinator != "auto":
        if not 0 <= index < count:
            raise ProcessError(f"--process_id={index} must be from 0 to {count - 1}")
        options = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ProcessError(
            f"the processes did not find each other at {coordinator!r} ({reason}); start all of "
            "them with the same --coordinator, and check that the port is free and reachable"
        ) from error


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """Which one this is."""
    return jax.process_index()


def is_primary() -> bool:
    """Whether this process writes logs, summaries and files."""
    return index() == 0


def _client() -> Any:
    from jax._src import distributed  # the coordination service has no public door

    return distributed.global_state.client


def _get(key: str, what: str) -> str:
    """The value of a key as soon as another process has set it.

    Raises:
      ProcessError: that process died, some process told that it failed, or the time is over.
    """
    until = time.monotonic() + LONG_SECONDS
    while True:
        try:
            return _client().blocking_key_value_get(key, 1000 * LOOK_SECONDS)
        except Exception as error:
            over = time.monotonic() > until
            if over or _failures() or "DEADLINE_EXCEEDED" not in str(error):
                raise gone(what, error) from error


def _told_by_all(value: str, what: str) -> list[str]:
    """The values that the processes give to this call, in their order."""
    key = f"jaxcomp/{next(_names)}/{what}"
    _client().key_value_set(f"{key}/{index()}", value)
    return [_get(f"{key}/{i}", f"waiting for {what} of process {i}") for i in range(count())]


def wait_for_all(what: str) -> None:
    """Returns when every process is here.

    Raises:
      ProcessError: one of them failed or died.
    """
    if count() > 1:
        _told_by_all("here", what)


def from_primary(make: Callable[[], Any], what: str) -> Any:
    """The JSON value that `make` returns in the first process, in all of them.

    If it raises there, it raises in all of them: the others with the message.

    Raises:
      ProcessError: the first process failed or died.
    """
    if count() == 1:
        return make()
    key = f"jaxcomp/{next(_names)}/{what}"
    if is_primary():
        try:
            value = make()
        except BaseException as error:
            _client().key_value_set(key, json.dumps({"error": str(error) or type(error).__name__}))
            raise
        _client().key_value_set(key, json.dumps({"value": value}))
        return value
    told = json.loads(_get(key, f"waiting for {what} of process 0"))
    if "error" in told:
        raise ProcessError(f"process 0: {told['error']}")
    return told["value"]


def check_agreement(value: str, what: str, fix: str) -> None:
    """Raises `ProcessError` in all processes unless all of them hold the same value."""
    if count() == 1:
        return
    told = _told_by_all(value, what)
    others = [i for i, one in enumerate(told) if one != told[0]]
    if others:
        with contextlib.suppress(Exception):  # process 0 must live until all have read this
            _client().wait_at_barrier(f"jaxcomp/{next(_names)}/{what}/read", 10_000)
        raise ProcessError(
            f"process {' and '.join(map(str, others))} has another {what} than process 0; {fix}"
        )


def preempted(step: int) -> bool:
    """Whether some process was told to stop (SIGTERM), True at the same step in all of them.

    Call it at every step, in all processes. With one process it is always False.
    """
    if count() == 1:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def local(tree: PyTree) -> PyTree:
    """A replicated tree as arrays of this process alone; the same tree if there is one process."""
    if count() == 1:
        return tree
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def lost(error: BaseException) -> bool:
    """Whether an error of a computation says that another process is gone."""
    words: Sequence[str] = ("gloo", "connection", "unavailable", "deadline", "heartbeat", "peer")
    return count() > 1 and any(word in str(error).lower() for word in words)


@contextlib.contextmanager
def losses_told(where: str) -> Iterator[None]:
    """Turns what a computation says when another process is gone into a `ProcessError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, JaxcompError) or not lost(error):
            raise
        raise gone(where, error) from error


def gone(where: str, error: BaseException) -> ProcessError:
    """The error for a computation or a wait that another process broke."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    told = _failures()
    return _broken(where, told[0] if told else f"another process ended or is silent ({reason})")


def _broken(where: str, what: str) -> ProcessError:
    return ProcessError(
        f"{where}: {what.rstrip('.')}. The last checkpoint is good: start all processes again to "
        "go on."
    )


@contextlib.contextmanager
def watched(where: str) -> Iterator[None]:
    """Around what processes compute together: when one tells that it failed, the others end too.

    Each waits in some collective for the one that failed, which Python cannot interrupt: if this
    process has not noticed by itself after `PATIENCE_SECONDS`, it ends with the error, status 1.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            told = _failures()
            if told and not over.wait(PATIENCE_SECONDS):
                print(f"error: {_broken(where, told[0])}", file=sys.stderr, flush=True)
                end(1)

    if count() > 1:
        threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def tell_failure(error: BaseException) -> None:
    """Leaves word of the error by which this process ends; the errors of the others quote it."""
    follows = isinstance(error, ProcessError) or hasattr(error, "signum")  # all end by it
    if _client() is None or follows:
        return
    with contextlib.suppress(Exception):
        _client().key_value_set(f"jaxcomp/failed/{index()}", str(error)[:500])


def _failures() -> list[str]:
    """What other processes told before they ended, as "process I failed: ..."."""
    with contextlib.suppress(Exception):
        found = _client().key_value_dir_get("jaxcomp/failed/")
        others = [(key.rpartition("/")[2], value) for key, value in found]
        return [f"process {i} failed: {v}" for i, v in sorted(others) if i != str(index())]
    return []


def _told_the_end() -> None:
    """Says that this process ends; the first one hears the others out."""
    client, until = _client(), time.monotonic() + GRACE_SECONDS
    if not is_primary():
        client.key_value_set(f"jaxcomp/end/{index()}", "1")
        return
    for i in range(1, count()):
        left = max(1, round(1000 * (until - time.monotonic())))
        client.blocking_key_value_get(f"jaxcomp/end/{i}", left)
    time.sleep(LEAVING_SECONDS)


def end(status: int) -> NoReturn:
    """Ends this process.

    After an error it does not part from the others, which would mean to wait for them while they
    wait for it: they notice that it is gone. Only the first one, which answers for all, gives them
    `GRACE_SECONDS` to end by the same error: without it the runtime aborts them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if status and count() > 1:
        with contextlib.suppress(Exception):
            _told_the_end()
        os._exit(status)
    sys.exit(status)
