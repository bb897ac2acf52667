"""The `sae` command: find the subcommand; turn mistakes into one line and exit code 2, signals into 130 and 143."""

import errno
import importlib
import logging
import os
import signal
import sys
from typing import NamedTuple

import sae
from sae.workflows.signals import Stopped, raised

GOES_ON = "run the same command to continue from here"
RESUMES = "run the same command with --resume to continue from here"
AGAIN = "nothing was kept: the same command starts from the beginning"


class Command(NamedTuple):
    """A subcommand of `sae`."""

    entry: str
    """The module of `sae.cli` and the function in it that runs the command: it takes the arguments, returns the exit code."""
    what: str
    """Its purpose, as `sae --help` lists it."""
    stopped: str
    """The line printed when a signal stops it: how to continue, or that nothing was kept."""

    def run(self, args: list[str]) -> int:
        """Run the command and return its exit code. Its module is imported now, which takes seconds for some."""
        module, function = self.entry.split(".")
        return getattr(importlib.import_module(f"sae.cli.{module}"), function)(args)


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "evaluate.demo_main",
        "the whole job on an embedded model and text: harvest, train, evaluate, features, explain, dead",
        GOES_ON,
    ),
    "plan": Command(
        "plan.main",
        "what a harvest, a training or features would take: disk, memory, time, and what limits",
        AGAIN,
    ),
    "harvest": Command("store.harvest_main", "text -> a store of activations", GOES_ON),
    "store": Command(
        "store.main",
        "what a store holds (show), whether its bytes are right (verify), labels for its tokens (label), its geometry, a store of your own files (import)",
        "the same command begins again, and keeps the shards or labels that are finished",
    ),
    "train": Command(
        "train.main", "a store -> a sparse autoencoder: sae train topk --store S --out R", RESUMES
    ),
    "resume": Command(
        "resume.main",
        "continues a training that stopped, with the settings in its folder: sae resume R",
        GOES_ON,
    ),
    "finetune": Command(
        "finetune.main",
        "trains a finished run's SAE further, end to end through the language model: sae finetune R --out R2",
        RESUMES,
    ),
    "evaluate": Command(
        "evaluate.main",
        "how well a run's SAE reconstructs held-out activations and the model's predictions",
        AGAIN,
    ),
    "trust": Command(
        "trust.main",
        "a run beside its controls and seeds: which differences are beyond chance, which latents are stable",
        GOES_ON,
    ),
    "pool": Command(
        "pool.main",
        "several runs that differ in seed -> one SAE of what they share: sae pool R1 R2 R3 --out R",
        RESUMES,
    ),
    "synthetic": Command(
        "synthetic.main",
        "trains an architecture, or all, on planted features and counts those it finds: sae synthetic topk",
        "with --out, `sae synthetic all` keeps what is finished and goes on from there; else the same command begins again",
    ),
    "features": Command("features.main", "what every latent of a run's SAE fires on", GOES_ON),
    "explain": Command(
        "explain.main",
        "a rule for every latent of a run, chosen on one half of the text and scored on the other, beside controls",
        GOES_ON,
    ),
    "search": Command(
        "search.main", 'the latents that fit some words by meaning: sae search RUN "family members"', AGAIN
    ),
    "lens": Command(
        "lens.main",
        "which next tokens latents favour through the model's later blocks, and how well that predicts what they do",
        GOES_ON,
    ),
    "families": Command(
        "families.main",
        "which latents are parents of which, by what they fire on and what they reconstruct, beside chance",
        GOES_ON,
    ),
    "catalogue": Command(
        "catalogue.main",
        'well-known SAEs of the hub by words: sae catalogue "gemma 2 2b layer 20 16k"',
        AGAIN,
    ),
    "import": Command(
        "hub.import_main",
        "another tool's SAE -> a run: sae import saelens FOLDER --out R --store S; from the hub: sae import hf:…",
        AGAIN,
    ),
    "export": Command(
        "export.main",
        "features as one HTML file (sae export html), or a run's SAE as another tool's files (sae export saelens)",
        AGAIN,
    ),
    "labels": Command(
        "features.labels_main", "what people called a run's features, to a CSV or JSON file and back", AGAIN
    ),
    "dead": Command(
        "dead.main",
        "which latents are dead, rare or dense, and why: causes, and what a change would do",
        AGAIN,
    ),
    "bidirectional": Command(
        "features.bidirectional_main",
        "the latents that fire with both signs, and what either sign fires on",
        AGAIN,
    ),
    "compare": Command(
        "compare.main", "runs side by side; the latents of two runs matched one with another", AGAIN
    ),
    "sweep": Command(
        "compare.sweep_main",
        "a grid of methods and settings: trained, evaluated and plotted, one run after the other",
        GOES_ON,
    ),
    "probe": Command(
        "probe.main",
        "what latents know of labelled texts, beside baselines: 113 known tasks, or your own file",
        GOES_ON,
    ),
    "absorption": Command(
        "absorption.main",
        "whether latents for first letters are silent where narrower ones stand in for them, beside a random SAE",
        GOES_ON,
    ),
    "find": Command(
        "find.main",
        "the latents that tell two files of texts apart, tested on held-out ones; saves one as a monitor",
        AGAIN,
    ),
    "monitor": Command("find.monitor_main", "which texts of a file a saved monitor fires on", AGAIN),
    "steer": Command(
        "steer.main",
        "text with latents turned up, down or off beside the text as it is; strengths swept; compared with rivals",
        "the same command continues from here with --compare or --forecast, and starts from the beginning without them",
    ),
    "push": Command(
        "hub.push_main",
        "a run's SAE -> the Hugging Face hub, with a model card: sae push runs/demo hf:me/my-sae",
        GOES_ON,
    ),
    "open": Command(
        "hub.open_main",
        "from an SAE's name on the hub to the app's pages: fetch, harvest, features, evaluation, app",
        GOES_ON,
    ),
    "app": Command("app.main", "browse runs and features in a web browser, on this machine", AGAIN),
}


def main(args: list[str] | None = None) -> int:
    """Run `sae` with the given arguments (default: the process's); return its exit code."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"sae {sae.__version__}")
        return 0
    if args[0] not in COMMANDS:
        from sae.cli.arguments import unknown

        print(
            f"sae: {unknown('command', args[0], COMMANDS)}; choose from {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    _quiet()
    with raised() as asked:
        return _run(args, asked)


def _run(args: list[str], asked: list[int]) -> int:
    """Run a command; turn mistakes and the signals collected in `asked` into a line and an exit code."""
    try:
        code = COMMANDS[args[0]].run(args[1:])
        sys.stdout.flush()
        return code
    except Stopped as stopped:
        return _stopped(args[0], stopped.number)
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if asked:  # compiled code on the way turned the stop into an error of its own
            return _stopped(args[0], asked[-1])
        message = _message(error)
        if message is None:
            raise
        print(f"sae {args[0]}: {' '.join(message.split())}", file=sys.stderr)
        if fix := getattr(error, "fix", None):
            print(f"  fix: {fix}", file=sys.stderr)
        return 2


def _message(error: Exception) -> str | None:
    """Return what to print for a mistake that the user can put right, or None for a fault of the workbench."""
    from activations.errors import WorkbenchError

    if isinstance(error, WorkbenchError):
        return error.message
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or "while writing"
        return f"the disk is full ({place}): free some space and run the same command again; finished parts are kept"
    if isinstance(error, PermissionError):
        return f"no permission for {error.filename}: choose another place or change its permissions"
    if error.errno is None:
        return None
    return f"{error.filename or 'a file'} cannot be used ({error.strerror}): choose another place"


def _stopped(command: str, number: int) -> int:
    print(f"sae {command}: stopped; {COMMANDS[command].stopped}", file=sys.stderr)
    return 128 + number


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.what}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sae COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "sae COMMAND --help shows the options of a command, sae --version the release.",
        ]
    )


class _RetriesOnce(logging.Filter):
    """Replace the messages of the hub's library about requests that it retries by one line of ours."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.said and "Retry" in record.getMessage():
            self.said = True
            print("the hub does not answer: trying again, for half a minute", file=sys.stderr)
        return False


def _quiet() -> None:
    """Show our own messages; hide the progress bars and chatter of the libraries below."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("activations", "sae"):
        logging.getLogger(package).setLevel(logging.INFO)
    for package in ("transformers", "huggingface_hub", "httpx", "datasets"):
        logging.getLogger(package).setLevel(
            logging.CRITICAL
        )  # what fails there is raised too, and printed in one line
    hub = logging.getLogger("huggingface_hub.utils._http")
    hub.setLevel(logging.WARNING)
    hub.filters = [_RetriesOnce()]
    for name in (
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS",
        "HF_HUB_DISABLE_TELEMETRY",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # its import sets its level anew


if __name__ == "__main__":
    sys.exit(main())
