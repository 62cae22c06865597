"""What `taxbreak` runs: words in, a command's result on stdout, every error of ours as one line on stderr.

Exit 0 when done, 2 for bad usage or input, 1 for a failure.
"""

import atexit
import gc
import sys
from pathlib import Path

from taxbreak_vllm.cli.printing import say
from taxbreak_vllm.model.errors import BaselineError, SettingsError, SpoolError, TaxbreakError, TraceFormatError

_BAD_INPUT = (TraceFormatError, SpoolError, SettingsError, BaselineError)


def main() -> None:
    """Run the command line; every error of ours ends here, in one line."""
    words = sys.argv[1:]
    try:
        _check_text(words)
        if words[:1] == ["analyze"]:
            _collect_nothing()
        if paths := _paths_alone(words):
            from taxbreak_vllm.cli.analyses import analyses, print_analyses
            from taxbreak_vllm.taxes.terms import Terms

            print_analyses(analyses(paths, Terms()), json=True)
        else:
            from taxbreak_vllm.cli.app import app

            app()
    except TaxbreakError as error:
        _fail(str(error), 2 if isinstance(error, _BAD_INPUT) else 1)
    except OSError as error:
        _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _collect_nothing() -> None:
    """Let the end of the process free what cycles there are, unsearched: a sixth of a short run goes into looking."""
    gc.disable()
    atexit.register(gc.freeze)  # the interpreter would look through all that is loaded once more


def _check_text(words: list[str]) -> None:
    """Refuse a name that is not UTF-8 before any work is done: no JSON, HTML or table could say it."""
    for word in words:
        shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
        if shown != word:
            raise SettingsError(f"{shown}: not UTF-8; give the file another name")


def _paths_alone(words: list[str]) -> list[Path] | None:
    """Return the paths of `analyze --json PATH…`, which leaves a parser nothing to do, None for any other words.

    Loading typer, and its model of two words, takes longer than most traces.
    """
    command, *rest = words or [""]
    paths = [Path(word) for word in rest if word != "--json"]
    is_plain = command == "analyze" and len(paths) == len(rest) - 1 and not any(w[:1] == "-" for w in map(str, paths))
    return paths if is_plain else None


def _fail(message: str, code: int) -> None:
    say(message)
    raise SystemExit(code)
