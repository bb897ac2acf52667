"""`sae demo`: harvest, train, evaluate, features and dead latents on the embedded model and text."""

import shutil
import sys
from pathlib import Path

from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.evaluate import show_evaluation
from sae.workflows.demo import Demo, run_demo


def main(args: list[str]) -> int:
    """Parse and run."""
    run = run_demo(arguments.parse(Demo, "sae demo", args), show_progress)
    if run.evaluation:
        show_evaluation(run, run.evaluation)
    # As it can be typed here, whether or not the environment is activated.
    command = "sae" if shutil.which("sae") else Path(sys.executable).with_name("sae")
    print(f"\nLook at what it learned:  {command} app {run.path.parent}")
    return 0
