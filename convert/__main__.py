"""The command line of the converter: `python -m convert STEP`, the steps being those below."""

import argparse
import importlib
import sys

from models import UserError

# Each step is a module of the same name with `configure(parser)` and `main(args) -> exit code`.
# Only the one asked for does its heavy imports, so that `--help` and `verify` answer at once.
STEPS = {
    "train": "pictures and labels -> checkpoint",
    "quantize": "checkpoint and a few pictures -> integer-only .tflite with its card",
    "verify": "prove that a .tflite file is integer-only",
    "sqnr": "show where the accuracy goes, tensor by tensor",
    "evaluate": "score a .tflite file on labelled pictures",
    "baseline": "checkpoint or integer file -> float32, dynamic-range or stock int8 .tflite, to compare with",
    "ablate": "checkpoint and labelled pictures -> table of what each decision is worth",
    "profile": "time every operator of a .tflite file",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one step; a `UserError` is printed as one sentence and answered with exit code 2."""
    try:
        args = _parser().parse_args(arguments)
        return int(args.run(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"error: {error}: `pip install -e '.[convert]'` installs what the converter needs.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Turn Segmenter models into integer-only TFLite files.",
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    for name, purpose in STEPS.items():
        module = importlib.import_module(f"convert.{name}")
        step = steps.add_parser(
            name, help=purpose, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.configure(step)
        step.set_defaults(run=module.main)
    return parser


if __name__ == "__main__":
    sys.exit(main())
