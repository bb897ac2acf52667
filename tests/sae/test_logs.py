"""Loggers beside log.jsonl: the same rows, none of them needed."""

import sys

import pytest

from activations.errors import ConfigError
from sae.runs.records import RunRecord
from sae.runs.saved_sae import read_log
from sae.training.loggers import Loggers

ROWS = [{"step": 5, "loss": 0.5, "l0": 4.0}, {"step": 10, "loss": 0.25, "l0": 4.0}]

RECORD = RunRecord({}, "blocks.0.hook_resid_post", 8, 1.0, "toy", None, None, None, id="abc")


def log_all(folder, names) -> None:
    loggers = Loggers(folder, names, RECORD)
    for row in ROWS:
        loggers.log(row)
    loggers.close()


def test_every_row_is_in_log_jsonl_whatever_else_logs(tmp_path):
    log_all(tmp_path, ("tensorboard",))
    assert read_log(tmp_path / "log.jsonl") == ROWS


def test_tensorboard_gets_every_column_at_its_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_all(tmp_path, ("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["l0", "loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 0.5), (10, 0.25)]


def test_wandb_gets_every_row_without_an_account(tmp_path, monkeypatch):
    import wandb  # comes with transformer-lens

    rows = []

    class FakeRun:
        def log(self, row, step):
            rows.append((step, row))

        def finish(self):
            rows.append("finished")

    monkeypatch.setattr(wandb, "init", lambda **settings: FakeRun())
    log_all(tmp_path, ("wandb",))
    assert rows == [(5, ROWS[0]), (10, ROWS[1]), "finished"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, name):
    module = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'sae-workbench\[{name}\]'"):
        Loggers(tmp_path, (name,), RECORD)
