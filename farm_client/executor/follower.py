"""A rank of an executor's from 1 on: loads what rank 0 loads, and does its share of each batch until rank 0 is gone.

It reports that it has loaded a task, and its own failure, after which it ends.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from farm_client import task
from farm_client.executor.channel import Channel
from farm_client.executor.data_loaders import has_semaphores, load_without_workers
from farm_client.executor.devices import choose_device
from farm_client.executor.environment import work_beside
from farm_client.executor.failures import as_failed, blaming
from farm_client.executor.followers import LINK_VARIABLE, PROCESSES_VARIABLE, RANK_VARIABLE
from farm_client.executor.messages import Loaded, LoadTask, Run
from farm_client.executor.output import print_anything
from farm_client.executor.placing import Placing
from farm_client.executor.progress import Unheard
from farm_client.executor.rank_links import RankLost, Spoke
from farm_client.executor.ranks import Ranks
from farm_client.executor.runner import TaskRunner
from farm_client.executor.task_packages import use_packages
from farm_client.executor.vram import bound_vram
from protocol.assignments import Kind
from protocol.errors import FarmError


class FollowingRunner(TaskRunner):
    """A task on a rank that reports nothing."""

    def follow(self, order: Run) -> None:
        """Do this rank's part of an assignment; hold the weights of one that rank 0 does alone. Raises: as ``run``."""
        with blaming(self.contract.code_dir):
            is_evaluated_together = order.kind is Kind.EVALUATE and self.tensors.shards is not None
            if order.kind is Kind.TRAIN or is_evaluated_together:
                self._compiled_or_not(order, Unheard())
                self.go_on()
            else:
                self._weights.take(order)


def main() -> int:
    """Follow until the channel closes; 1 after a failure, 2 if it is not rank 0 who started this."""
    try:
        channel = Channel.from_environment()
        rank, size, link = (int(os.environ.pop(name)) for name in (RANK_VARIABLE, PROCESSES_VARIABLE, LINK_VARIABLE))
    except (FarmError, KeyError):
        sys.stderr.write("a rank is started by its executor, not by hand\n")
        return 2
    to_hub = socket.socket(fileno=link)
    to_hub.set_inheritable(False)
    ranks = Ranks(rank, size, Spoke(to_hub, size))
    print_anything()
    task.send_metrics_to(_drop)
    runner: FollowingRunner | None = None
    while (order := channel.receive()) is not None:
        try:
            if isinstance(order, LoadTask):
                runner = _load(order, ranks)
                runner.share_out(ranks)
                channel.send(Loaded())
            elif isinstance(order, Run) and runner is not None:
                runner.follow(order)
        except RankLost:  # rank 0 knows, or is gone itself
            return 1
        except BaseException as error:
            channel.send(as_failed(error, None))
            return 1
    return 0


def _load(order: LoadTask, ranks: Ranks) -> FollowingRunner:
    device = choose_device()
    bound_vram(device)
    if order.packages_dir is not None:
        use_packages(Path(order.packages_dir))
    work_beside(order.code_dir, order.entry)
    if not has_semaphores():
        load_without_workers(lambda _line: None)  # rank 0 says so
    return FollowingRunner(order, device, place=Placing(ranks))


def _drop(step: int, metrics: Mapping[str, float]) -> None:
    """Of what is logged rank 0 reports its own."""


if __name__ == "__main__":
    sys.exit(main())
