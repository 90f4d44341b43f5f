"""The further machines of an engine that spans several, each served by a Ray actor that holds vLLM's workers.

The replica's own actor leads: its engine core plans the steps and reaches all workers through vLLM's message
queues. Its group (`placement.py`) has a bundle for every machine. vLLM ends none of this by itself when one
machine fails, so the leader watches the others and ends its engine when one is lost.
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
from typing import Any

import ray

from labeler.config.loading import TeacherConfig
from labeler.on_ray.failure_causes import first_cause
from labeler.on_ray.placement import options_in_bundle
from labeler.teacher.model_identity import find_model_folder
from labeler.teacher.vllm.engine import prepare_process

CHECK_SEC = 1.0
BLAME_SEC = 5.0
"""An engine that failed may know of a lost machine before Ray does."""


class Follower:
    """Made a Ray actor on each further machine."""

    def run(self, teacher_config: TeacherConfig, arguments: dict[str, Any]) -> None:
        """Hold the engine's workers on this machine until one of them ends."""
        prepare_process(teacher_config, cores=None, machines=arguments["nnodes"])
        from vllm import EngineArgs
        from vllm.v1.executor.multiproc_executor import MultiprocExecutor

        folder = find_model_folder(teacher_config.model, teacher_config.revision)
        own_arguments: dict[str, Any] = arguments | {"model": str(folder)}
        config = EngineArgs(**own_arguments).create_engine_config()
        executor = MultiprocExecutor(config, monitor_workers=False)
        executor.start_worker_monitor(inline=True)


class Followers:
    """The leader's hold on the other machines."""

    def __init__(self, teacher_config: TeacherConfig, arguments: dict[str, Any]) -> None:
        """Start them, each with the leader's `arguments` and a rank of its own."""
        group = ray.util.get_current_placement_group()
        if group is None:
            raise RuntimeError(
                "no placement group holds the machines of this engine; start its worker in the group that "
                "`labeler.on_ray.placement.reserve` makes"
            )
        host = ray.util.get_node_ip_address()
        shared = arguments | {
            # Not vLLM's Ray executor, which wants a bundle for each GPU and so cannot keep a stage together.
            "distributed_executor_backend": "mp",
            "nnodes": group.bundle_count,
            "master_addr": host,
            "master_port": _free_port(host),
        }
        self.leader_arguments = shared | {"node_rank": 0}
        self._closed = threading.Event()
        actor_class: Any = ray.remote(Follower)
        self._actors, self._runs = [], []
        for rank in range(1, group.bundle_count):
            options = options_in_bundle(group, rank) | {"max_restarts": 0, "max_task_retries": 0}
            actor = actor_class.options(**options).remote()
            self._actors.append(actor)
            self._runs.append(actor.run.remote(teacher_config, shared | {"node_rank": rank}))
        threading.Thread(target=self._watch, name="follower-watch", daemon=True).start()

    def failure(self) -> str | None:
        """Why one of the machines is lost; None if, even a moment after the engine's failure, none is."""
        ended, _ = ray.wait(self._runs, timeout=BLAME_SEC)
        return _why_ended(ended[0]) if ended else None

    def expect_end(self) -> None:
        """The engine is about to be stopped."""
        self._closed.set()

    def close(self) -> None:
        self._closed.set()
        for actor in self._actors:
            ray.kill(actor)

    def _watch(self) -> None:
        """Once a machine is lost, end the engine's processes here, also those still to be started."""
        while not self._closed.wait(CHECK_SEC):
            if ray.wait(self._runs, timeout=0)[0] and not self._closed.is_set():
                for process in multiprocessing.active_children():
                    process.kill()


def _why_ended(run: Any) -> str:
    try:
        ray.get(run)
    except Exception as error:  # noqa: BLE001
        return f"a further machine of the engine failed: {first_cause(error)}"
    return "a worker of the engine on a further machine has ended"


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
