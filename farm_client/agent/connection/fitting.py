"""Saying the same in shorter frames, where a farm allows only short ones."""

from __future__ import annotations

from protocol.messages import Error, Message, Progress, Reject

_SHORT_CHARS = 500


def shortened(message: Message) -> list[Message] | None:
    """Return messages that say the same, or its most important part, in shorter frames; None if it is short already."""
    match message:
        case Progress(logs=logs, metrics=metrics) if len(logs) + len(metrics) > 1:
            halves = (slice(None, (len(logs) + 1) // 2), slice(None, len(metrics) // 2))
            rest = (slice(halves[0].stop, None), slice(halves[1].stop, None))
            return [
                message.model_copy(update={"logs": logs[of_logs], "metrics": metrics[of_metrics]})
                for of_logs, of_metrics in (halves, rest)
            ]
        case Error(traceback=str()):
            return [message.model_copy(update={"traceback": None})]
        case Error(message=text) | Reject(message=text) if len(text) > _SHORT_CHARS:
            return [message.model_copy(update={"message": text[:_SHORT_CHARS]})]
    return None
