"""An executor without torch: speaks the real frames and does what the task's config tells it."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from farm_client.executor.messages import (
    ORDER,
    Abandon,
    Advance,
    Done,
    Failed,
    Loaded,
    LoadTask,
    Rebase,
    Rebased,
    Run,
    Saved,
    StepsDone,
    Stop,
    Warm,
)
from protocol.assignments import Kind, MetricPoint
from protocol.digests import digest_bytes
from protocol.framing import FrameDecoder, pack_frame
from protocol.messages import Scope

_REPORTED_BYTES = 1024
"""A larger update goes by file; small, so that tests need no large ones."""


def main():
    connection = socket.socket(fileno=int(os.environ["AIFARM_EXECUTOR_FD"]))
    decoder = FrameDecoder()
    load = None
    held = late = None
    connection.sendall(pack_frame(Warm(torch_version="0").model_dump()))
    while data := connection.recv(1 << 18):
        for frame in decoder.feed(data):
            order = ORDER.validate_python(frame)
            match order:
                case LoadTask():
                    load = order
                    report = loaded(order)
                case Run():
                    weights = order.weights or (Path(order.weights_path).read_bytes() if order.weights_path else held)
                    held = weights
                    report = run(load, order, weights + state_of(order), connection)
                    if load.config.get("late"):  # its result comes when the next one's steps are done, and no sooner
                        connection.sendall(pack_frame(StepsDone(assignment_id=order.assignment_id).model_dump()))
                        late, report = report, late
                case Rebase():
                    report = rebased(load, order)
                case Abandon():
                    Path(load.config["abandoned"]).write_bytes(b"abandoned")
                    continue
                case Stop():
                    return
            report, held = gone_on(load, report, held)
            if report is not None:
                connection.sendall(pack_frame(report.model_dump()))


def gone_on(load, report, held):
    if not load.config.get("goes_on") or not isinstance(report, Done):
        return report, held
    return report.model_copy(update={"holds": digest_bytes(held + b"+")}), held + b"+"


def state_of(order):
    return order.inner_state or (Path(order.inner_state_path).read_bytes() if order.inner_state_path else b"")


def loaded(order):
    print("loading", Path(order.code_dir, order.entry).read_text())
    if order.config.get("fail_load"):
        return Failed(code="task_code", message="no build_model", scope=Scope.NOBODY, traceback="line 1")
    if order.config.get("builds_others") and order.frozen_path is None:
        return Failed(code="frozen_differs", message=order.frozen_digest, scope=Scope.ELSEWHERE)
    if order.base_dir is not None:
        base = Path(order.base_dir)
        print("base", {str(p.relative_to(base)): p.read_text() for p in sorted(base.rglob("*")) if p.is_file()})
    return Loaded()


def rebased(load, order):
    """Weights follow from others by what is appended to them, or not, as the task's config says."""
    doing = load.config.get("rebasing", "rightly")
    print(f"rebasing {doing}")
    match doing:
        case "fail":
            return Failed(assignment_id=order.assignment_id, code="boom", message="boom", scope=Scope.ELSEWHERE)
        case "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "link":
            Path(order.made_path).symlink_to(load.config["target"])
            return Rebased(assignment_id=order.assignment_id)
        case "hang":
            Path(load.config["pid_file"]).write_text(str(os.getpid()))
            time.sleep(600)
        case "lie":
            return Done(assignment_id=order.assignment_id, samples=1, metrics={})
    made = Path(order.base_path).read_bytes()
    for difference in order.differences:
        made += difference.data if difference.path is None else Path(difference.path).read_bytes()
    Path(order.made_path).write_bytes(b"wrong" if doing == "wrongly" else made)
    return Rebased(assignment_id=order.assignment_id)


def run(load, order, weights, connection):  # noqa: C901  one case for each thing that an executor may do
    doing = load.config.get("doing", "train")
    print(f"round {order.round}: {doing}")
    progress = Advance(
        assignment_id=order.assignment_id, samples_done=1, metrics=(MetricPoint(name="fake", value=1.0, step=0),)
    )
    connection.sendall(pack_frame(progress.model_dump()))
    if doing == "hang_later":
        doing = "hang" if order.round else "train"
    if doing == "die_later":
        doing = "die" if order.round else "train"
    match doing:
        case "hang":
            Path(load.config["pid_file"]).write_text(str(os.getpid()))
            time.sleep(600)
        case "wait":
            Path(load.config["gate"]).read_bytes()  # a FIFO: until the test writes to it
        case "wait_and_fail":
            Path(load.config["gate"]).read_bytes()
            return Failed(
                assignment_id=order.assignment_id, code="task_code", message="boom", scope=Scope.NOBODY, traceback="tb"
            )
        case "print_and_train" | "print_and_fail":
            Path(load.config["gate"]).read_bytes()
            print("the last words")
            if doing == "print_and_fail":
                return Failed(assignment_id=order.assignment_id, code="task_code", message="boom", scope=Scope.NOBODY)
        case "snapshot" if not Path(order.snapshot_path).exists():
            Path(order.snapshot_path).write_bytes(b"half of it")
            connection.sendall(pack_frame(Saved(assignment_id=order.assignment_id).model_dump()))
            if load.config.get("dies"):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        case "snapshot":
            print("going on from", Path(order.snapshot_path).read_text())
        case "print_snapshot_path":
            print("snapshots go to", order.snapshot_path)
        case "control":
            own = Path(order.control_path)
            print("control was", own.read_text() if own.exists() else "zero")
            path = Path(load.scratch_dir, "left.control")
            path.write_text((own.read_text() if own.exists() else "") + f"+{order.round}")
            return Done(
                assignment_id=order.assignment_id,
                samples=1,
                metrics={},
                update=b"x",
                update_digest=digest_bytes(b"x"),
                update_bytes=1,
                control_path=str(path) if load.config.get("leaves", True) else "/etc/hostname",
            )
        case "die_once":
            marker = Path(load.config["marker"])
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), getattr(signal, load.config["signal"]))
        case "out_of_memory":
            failed = {"code": "out_of_memory", "message": "no memory", "scope": Scope.ELSEWHERE}
            return Failed(assignment_id=order.assignment_id, **failed)
        case "lie":
            lie = {"type": "advance", "assignment_id": order.assignment_id, "samples_done": load.config["samples_done"]}
            connection.sendall(pack_frame(lie))
            time.sleep(600)
        case "close_descriptors":
            os.closerange(0, 100)
            time.sleep(600)
        case "fill_disk_once" if not Path(load.config["marker"]).exists():
            Path(load.config["marker"]).touch()
            failed = {"code": "disk_full", "message": "full", "scope": Scope.ELSEWHERE}
            return Failed(assignment_id=order.assignment_id, **failed)
        case "die":
            print("about to die", file=sys.stderr)
            os.kill(os.getpid(), getattr(signal, load.config["signal"]))
        case "exit":
            sys.exit(load.config["code"])
        case "fail":
            return Failed(
                assignment_id=order.assignment_id, code="task_code", message="boom", scope=Scope.NOBODY, traceback="tb"
            )
        case "fail_and_keep":
            kept = (load.config["kept"] + "!" * order.round).encode() * load.config.get("times", 1)
            path = Path(load.config["elsewhere"] if "elsewhere" in load.config else Path(load.scratch_dir, "kept"))
            path.write_bytes(kept)
            step = {"path": str(path), "digest": digest_bytes(kept), "size_bytes": len(kept)}
            failed = {
                "code": "task_code",
                "message": load.config.get("messages", ["boom"])[order.round],
                "scope": Scope.NOBODY,
            }
            return Failed(assignment_id=order.assignment_id, failed_step=step, **failed)
        case "leave":
            left = []
            for name, content in load.config["files"].items():
                path = Path(load.scratch_dir, "left", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if content.startswith("link:"):
                    path.symlink_to(content.removeprefix("link:"))
                else:
                    path.write_text(content)
                left.append({"name": name, "path": str(path)})
            return Done(assignment_id=order.assignment_id, samples=1, metrics={}, left=left)
        case "garbage":
            connection.sendall(b"\x00\x00\x00\x02\xff\xff")
            time.sleep(600)
        case "flood":
            for number in range(5000):
                print("line", number)
        case "environment":
            print(sorted(os.environ))
        case "bad_metrics":
            return Done(
                assignment_id=order.assignment_id, samples=1, metrics={str(i): 0.0 for i in range(1000)}, update=b"x"
            )
        case "steal":
            return Done(
                assignment_id=order.assignment_id,
                samples=1,
                metrics={},
                update_path=load.config["target"],
                update_digest="0" * 64,
                update_bytes=1,
            )
    return done(load, order, weights)


def done(load, order, weights):
    pieces = b"".join(Path(piece.path).read_bytes() for piece in order.pieces if piece.path)
    update = weights + pieces
    samples = sum(piece.stop - piece.start for piece in order.pieces)
    common = {
        "assignment_id": order.assignment_id,
        "samples": samples,
        "metrics": {"loss": 0.5},
        "compute_seconds": 0.1,
    }
    if order.kind is Kind.EVALUATE:
        return Done(**common)
    digest = digest_bytes(update)
    if len(update) <= _REPORTED_BYTES:
        return Done(**common, update=update, update_digest=digest, update_bytes=len(update))
    path = Path(load.scratch_dir) / f"{order.assignment_id}.update"
    path.write_bytes(update)
    return Done(**common, update_path=str(path), update_digest=digest, update_bytes=len(update))


if __name__ == "__main__":
    main()
