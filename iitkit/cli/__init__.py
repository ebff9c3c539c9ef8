"""The front door: ``iitkit COMMAND``. Only the standard library, so that ``--help`` answers at once."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

from iitkit.errors import IITKitError, choices, did_you_mean

COMMANDS = {
    "fit": ("training", "train interventions, then test the best checkpoint and write the artifact"),
    "validate": ("training", "measure a checkpoint on the validation pairs"),
    "test": ("training", "measure a checkpoint and the controls on held-out pairs"),
    "predict": ("training", "write a checkpoint's prediction for every test pair"),
    "trace": ("trace", "causal tracing: which state brings a corrupted fact back?"),
    "patch": ("patch", "activation, path and attribution patching from one run into another"),
    "lens": ("lens", "what each layer would say: the logit lens, plain and under an intervention"),
    "vector": ("vector", "steering vectors from two lists of prompts, without training"),
    "plot": ("plot", "draw a saved grid again: PNG and interactive page"),
    "steer": ("steer", "what a model writes when trained interventions steer it; compare, sweep the strength"),
    "push": ("push", "push an artifact to the Hugging Face Hub"),
    "pull": ("pull", "fetch an artifact from the Hugging Face Hub"),
    "convert": (
        "convert",
        "others' artifacts (pyvene, PEFT, GGUF, vectors) as ours; additions as GGUF control vectors",
    ),
    "merge": ("merge", "write a model with additive or affine edits merged into its weights"),
    "data": ("data", "report on a task's or a dataset's pairs before any training; save and push them"),
    "sites": ("sites", "print a network's components, modules, widths and heads; loads no weights"),
}
"""Command → module of this package that runs it, and what it does."""

USAGE = """\
iitkit: what does this network compute, and where?

usage: iitkit COMMAND --config NAME.yaml [--key value …]

{commands}

A config is a file, or the name of one of iitkit's own ({configs}).
Every key of a config is an option: iitkit fit --config NAME.yaml --model.alignment.gender.layer 9
iitkit COMMAND --help lists them; iitkit COMMAND --config NAME.yaml --print_config shows what would run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; those of the process unless given.

    Returns:
        0; 2 after bad input, which is answered in a line or two.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from iitkit.cli.files import config_names

        listed = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
        print(USAGE.format(commands=listed, configs=", ".join(config_names())), end="")
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        import iitkit

        print(f"iitkit {iitkit.__version__}")
        return 0
    command, *rest = arguments
    try:
        if command not in COMMANDS:
            hint = did_you_mean(command, COMMANDS)
            raise IITKitError(f"no command {command!r}.{hint} The commands are {choices(COMMANDS)}")
        from iitkit.cli.files import resolve_configs

        rest = resolve_configs(rest)
        importlib.import_module(f"iitkit.cli.{COMMANDS[command][0]}").run(command, rest)
    except IITKitError as error:
        return _failed(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f" ({error.filename})" if error.filename else ""
            return _failed(f"the disk is full{where}: free some space, then run again; what was complete is kept")
        raise
    except KeyboardInterrupt:
        print("iitkit: interrupted", file=sys.stderr)
        return 130
    return 0


def _failed(message: str) -> int:
    print(f"iitkit: {message}", file=sys.stderr)
    return 2
