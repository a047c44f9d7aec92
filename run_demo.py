"""The front door: `python run_demo.py [live | models | benchmark | doctor | ...]`; without a command it is `live`."""

import argparse
import importlib
import logging
import sys

from models import UserError

# Command -> its module, with `configure(parser)` and `main(args) -> exit code`, and what it is for.
# Only the one asked for is imported, so that `doctor` can still speak where another would fail.
COMMANDS = {
    "live": ("app.live", "segment a camera or a clip, in a window or without one (the default)"),
    "soak": ("app.soak", "run the live loop for long and check its speed and memory"),
    "web": ("app.web", "the page that segments the cameras, pictures and clips of its visitors"),
    "models": ("app.catalogue", "list the models that can be run"),
    "benchmark": ("app.benchmark", "measure speed and memory on this device"),
    "compare": ("app.compare", "hold two benchmark reports against each other"),
    "phone": ("app.phone", "the page that segments on a phone: serve it, or write it as a static site"),
    "doctor": ("app.doctor", "check this machine, and say what mends it"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a `UserError` is printed as one sentence and answered with exit code 2."""
    words = sys.argv[1:] if arguments is None else arguments
    named = bool(words) and not words[0].startswith("-")
    command = words[0] if named else "live"
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        if command not in COMMANDS:
            raise UserError(f"There is no command '{command}': choose from {', '.join(COMMANDS)}, or see --help.")
        module = importlib.import_module(COMMANDS[command][0])
        listed = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items())
        parser = argparse.ArgumentParser(
            prog="run_demo.py" + f" {command}" * named,
            description=module.__doc__ + ("" if named else f"\ncommands:\n{listed}"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(parser)
        return int(module.main(parser.parse_args(words[named:])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:  # a wheel that is missing, or does not load here
        print(f"error: {error}: `python run_demo.py doctor` says what mends it.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before there was anything to sum up, or for the second time
        return 130


if __name__ == "__main__":
    sys.exit(main())
