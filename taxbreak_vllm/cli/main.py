"""What `taxbreak` runs: words in, a command's result on stdout, every error of ours as one line on stderr.

Exit 0 when done, 2 for bad usage or input, 1 for a failure.
"""

import atexit
import gc
import os
import signal
import sys
from pathlib import Path

from taxbreak_vllm.cli.printing import say
from taxbreak_vllm.model.errors import (
    BaselineError,
    Refused,
    SettingsError,
    SpoolError,
    TaxbreakError,
    TraceFormatError,
    WorkloadError,
)

_BAD_INPUT = (TraceFormatError, SpoolError, SettingsError, BaselineError, WorkloadError, Refused)
_INTERRUPTED = 128 + signal.SIGINT
_EXPORTS = ("--html", "--speedscope", "--pprof", "--parquet")


def main() -> None:
    """Run the command line; every error of ours ends here, in one line."""
    words = sys.argv[1:]
    try:
        _check_text(words)
        if words[:1] == ["analyze"]:
            _start_lean()
        if asked := _paths_alone(words):
            from taxbreak_vllm.cli.analyses import analyze_paths, exports_to
            from taxbreak_vllm.taxes.terms import Terms

            paths, targets, is_json = asked
            analyze_paths(paths, Terms(), exports_to(targets, sources=paths), json=is_json)
        else:
            from taxbreak_vllm.cli.app import app

            app()
    except TaxbreakError as error:
        _fail(str(error), 2 if isinstance(error, _BAD_INPUT) else 1)
    except BrokenPipeError:  # whoever read has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", _INTERRUPTED)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # which typer says of Ctrl-C, and nothing else
            say("interrupted")
        raise


def _start_lean() -> None:
    """Leave out what costs a short run a quarter of its time: looking for garbage, and threads for linear algebra."""
    gc.disable()
    atexit.register(gc.freeze)  # the interpreter would look through all that is loaded once more
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads spin at its import and are never asked


def _check_text(words: list[str]) -> None:
    """Refuse a name that is not UTF-8 before any work is done: no JSON, HTML or table could say it."""
    for word in words:
        shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
        if shown != word:
            raise SettingsError(f"{shown}: not UTF-8; give the file another name")


def _paths_alone(words: list[str]) -> tuple[list[Path], dict[str, Path], bool] | None:
    """Read `analyze` of paths, exported or not: paths, targets, whether in JSON; None for any other words.

    Loading typer, and its model of so few words, takes longer than most traces.
    """
    paths: list[Path] = []
    targets: dict[str, Path] = {}
    is_json = False
    rest = iter(words[1:])
    for word in rest:
        if word == "--json":
            is_json = True
        elif not word.startswith("-"):
            paths.append(Path(word))
        elif word in _EXPORTS and not (target := next(rest, "-")).startswith("-"):
            targets[word.removeprefix("--")] = Path(target)
        else:
            return None
    return (paths, targets, is_json) if words[:1] == ["analyze"] and paths else None


def _fail(message: str, code: int) -> None:
    say(message)
    raise SystemExit(code)
