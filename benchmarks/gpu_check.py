"""The decomposition against a real GPU, with nothing but torch, numpy, pandas and this package's core.

    python benchmarks/gpu_check.py --all --out DIR [--wheels DIR] [--device cuda] [--seconds 540]
    python benchmarks/gpu_check.py --stage floors --stage replay --stage decompose --out DIR
    python benchmarks/gpu_check.py --all --device cpu --tiny --out DIR      # a rehearsal

Writes `gpu_check.json`, at most four gzipped traces and the replayed baselines to DIR and prints a table a stage. What
DIR holds already is not measured again, so a run that was broken off goes on where it was. Where msgspec, the one
package the core needs that a GPU host may lack, is not installed, `--wheels` names a folder with a wheel of it.
"""

import argparse
import os
import platform
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("floors", "replay", "decompose", "taxes", "findings", "graphs", "sessions")


def main(arguments: list[str] | None = None) -> int:
    """Run the stages asked for; 3 where the time was over before the last case."""
    args = _arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="taxbreak-gpu-") as work:
        for folder in (str(HERE), str(HERE.parent)):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        if find_spec("msgspec") is None:
            provide_msgspec(args.wheels, Path(work) / "site")
        return _run(args, Path(work))


def _run(args: argparse.Namespace, work: Path) -> int:
    import torch
    from gpu_book import Book
    from gpu_lab import Lab, child_environment
    from gpu_stages import STAGES

    from taxbreak_vllm.baselines.store import Baselines

    child_environment()
    book = Book(args.out / "gpu_check.json", seconds=args.seconds)
    if args.again:
        book.forget_failures()
    if args.device == "cpu":
        torch.set_num_threads(1)  # as the processes that replay
    lab = Lab(args.device, args.out, work, is_tiny=args.tiny)
    exported = args.out / "baselines.jsonl"
    with Baselines(lab.store) as store:
        if exported.exists():
            store.take(exported)
    book.note("about", "run", _about(args.device))
    for name in args.stages:
        print(f"\n== {name}", flush=True)
        STAGES[name](book, lab)
        with Baselines(lab.store) as store:
            store.export(exported)
    if book.left:
        print(f"\nthe time is over; left for the next run: {', '.join(book.left)}")
    return 3 if book.left else 0


def provide_msgspec(wheels: Path | None, into: Path) -> None:
    """Unpack a wheel of msgspec for this Python and put it on the path, also of the processes started from here."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = sorted(wheels.glob(f"msgspec-*-{tag}-*.whl")) if wheels else []
    if not found:
        sys.exit(f"msgspec is not installed: give --wheels a folder with msgspec-*-{tag}-*.whl")
    with zipfile.ZipFile(found[-1]) as wheel:
        wheel.extractall(into)
    sys.path.insert(0, str(into))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(into), os.environ.get("PYTHONPATH"))))


def _about(device: str) -> dict[str, object]:
    import numpy
    import torch

    told: dict[str, object] = {
        "python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__,
        "kernel": platform.release(), "cores": os.cpu_count(), "command": " ".join(sys.argv),
    }  # fmt: skip
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        told |= {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver offers": torch._C._cuda_getDriverVersion(),
        }
    return told


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stage", dest="stages", action="append", choices=NAMES, help="may be given several times")
    parser.add_argument("--all", action="store_true", help="every stage")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--wheels", type=Path, metavar="DIR")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--tiny", action="store_true", help="models of two narrow layers")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin no case after this long")
    parser.add_argument("--again", action="store_true", help="measure again what failed before")
    args = parser.parse_args(arguments)
    if args.all:
        args.stages = list(NAMES)
    if not args.stages:
        parser.error("nothing to do: give --stage or --all")
    return args


if __name__ == "__main__":
    sys.exit(main())
