"""`sae open`: from an SAE's name on the hub, or its folder, to the app's pages."""

from activations.errors import quoted
from activations.progress import show_progress
from sae.cli import app, arguments
from sae.cli.evaluate import show_evaluation
from sae.cli.import_ import show_import, tell
from sae.workflows.open_sae import Open, prepare


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Open, "sae open", args)
    run = prepare(command, show_progress, tell)
    if run.record.imported:
        show_import(run, run.record.imported)
    if run.evaluation:
        show_evaluation(run, run.evaluation)
    print(f"{run.path} is ready: sae app {quoted(run.path)}")
    if command.app:
        return app.main([str(run.path)])
    return 0
