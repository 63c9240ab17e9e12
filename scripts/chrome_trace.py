"""Spans of a generation as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.timing import Span

TRACKS = {"step": 1, "host": 2}


def chrome_trace(generations: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """A trace with one process per generation, and a track each for its steps and the host."""
    events: list[dict[str, Any]] = []
    for pid, (title, spans) in enumerate(generations.items(), start=1):
        names = [("process_name", 0, title), *(("thread_name", t, n) for n, t in TRACKS.items())]
        events += [
            {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
            for what, tid, name in names
        ]
        events += [
            {
                "name": span.name,
                "ph": "X",
                "pid": pid,
                "tid": TRACKS[span.track],
                "ts": span.start_ms * 1e3,
                "dur": span.ms * 1e3,
            }
            for span in spans
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
