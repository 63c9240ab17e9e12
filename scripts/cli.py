"""What the scripts share: argument parsers, logging, progress and error exits."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines and shows defaults other than None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return (
            action.help
            if action.default is None or action.default is False
            else super()._get_help_string(action)
        )


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows defaults and takes `-v` for log lines."""
    p = argparse.ArgumentParser(description=description, formatter_class=_Formatter)
    p.add_argument("-v", "--verbose", action="count", default=0, help="log more (-vv: everything)")
    return p


def add_num_heads(p: argparse.ArgumentParser) -> None:
    """The option for checkpoints whose keys do not tell the attention heads."""
    p.add_argument(
        "--num-heads",
        type=lambda text: tuple(int(n) for n in text.split(",")),
        default=(),
        metavar="N[,N,N]",
        help="attention heads where no published model tells: of HMAR without q/k norm; of "
        "Hi-MAR's encoder, decoder and dense denoiser",
    )


def joined(arguments: Sequence[str], option: str) -> list[str]:
    """`option value` as `option=value`, since argparse takes values like -1,5 for options."""
    items, result = iter(arguments), []
    for item in items:
        value = next(items, None) if item == option else None
        result.append(item if value is None else f"{item}={value}")
    return result


def parse_placement(text: str | None) -> dict[Any, Any]:
    """Backends by kind of graph; `BackendConfig` checks the names."""
    pairs = [part.split("=") for part in text.split(",")] if text else []
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"--place must be KIND=BACKEND,…, such as decode=ort-cpu, got {text!r}")
    return {kind.strip(): backend.strip() for kind, backend in pairs}


def run(main: Callable[[], None], *errors: type[Exception]) -> None:
    """Runs a script: expected errors become one line on stderr and exit code 1."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(
        sum(a.count("v") for a in sys.argv if a in ("-v", "-vv", "--verbose")), logging.DEBUG
    )
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # unwinds, so that unfinished output is removed
    try:
        main()
    except (*errors, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


class ProgressBar:
    """A bar on a terminal, one line per stage elsewhere; call it with (item, done, total)."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._stage = ""
        self._start = time.perf_counter()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, item: str, done: int, total: int) -> None:
        stage = item.split()[0]
        if not sys.stderr.isatty():
            if stage != self._stage:
                print(f"[{time.perf_counter() - self._start:6.1f} s] {stage}", file=sys.stderr)
            self._stage = stage
            return
        if stage != self._stage:
            if self._bar is not None:
                self._bar.close()
            self._bar = tqdm(
                total=total,
                desc=stage,
                bar_format="{desc:12} {bar:28} {percentage:3.0f}% {elapsed} {postfix}",
                leave=True,
            )
            self._stage = stage
        self._bar.set_postfix_str(item.removeprefix(stage).strip()[:40], refresh=False)
        self._bar.update(done - self._bar.n)
