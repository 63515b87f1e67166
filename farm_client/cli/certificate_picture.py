"""A certificate as a picture: one SVG file that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import Final

from protocol.certificate import SignedCertificate
from protocol.terminal_text import one_line
from protocol.wording import counted, flops_text

_MOST_CHARS: Final = 48
_MOST_TASKS: Final = 5
_STYLE: Final = (
    "text{font-family:Georgia,serif;fill:#222}.name{font-size:34px}.small{font-size:13px;fill:#666}"
    ".key{font-family:monospace;font-size:10px;fill:#888}"
)


def picture(signed: SignedCertificate) -> str:
    """Draw a certificate. Nothing in the picture proves anything: the signed file beside it does."""
    about = signed.certificate
    rows = [
        ("small", 78, "Certificate of contribution"),
        ("name", 130, _short(about.name or about.subject)),
        ("", 168, f"gave {flops_text(about.flops)} of computing" if about.flops else "gave computing time"),
        ("", 192, f"on {counted(about.samples, 'sample')} in {counted(about.assignments, 'part')} of rounds"),
        ("", 216, f"to the farm {_short(about.farm)}, from {about.first_day} to {about.last_day}."),
    ]
    for place, task in enumerate(about.tasks[:_MOST_TASKS]):
        share = flops_text(task.flops) if task.flops else counted(task.samples, "sample")
        rows.append(("small", 252 + 20 * place, f"{_short(task.name or task.task_id)}: {share}"))
    left = len(about.tasks) - _MOST_TASKS + about.more_tasks
    if left > 0:
        rows.append(("small", 252 + 20 * _MOST_TASKS, f"and {counted(left, 'other task')}"))
    rows += [
        ("key", 392, f"issued {about.issued_at} by key {signed.public_key}"),
        ("key", 408, f"signature {signed.signature[:44]}…"),
    ]
    texts = "".join(
        f'<text class="{kind}" x="400" y="{y}" text-anchor="middle">{escape(text)}</text>' for kind, y, text in rows
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 440" width="800" height="440">'
        f"<style>{_STYLE}</style>"
        '<rect width="800" height="440" fill="#fdfbf5"/>'
        '<rect x="16" y="16" width="768" height="408" fill="none" stroke="#b08d3c" stroke-width="3"/>'
        f"{texts}</svg>\n"
    )


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _MOST_CHARS else line[: _MOST_CHARS - 1] + "…"
