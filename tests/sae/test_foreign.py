"""Every format reads or refuses damaged bytes and arbitrary settings, in one line, and files are recognised by their format."""

import json
import random
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.errors import ForeignError
from sae.architectures import ARCHITECTURES
from sae.foreign import FORMATS, writable
from tests.sae.exchanged import ORIGIN, rows, trained
from tests.sae.small import SMALL
from tests.sae.test_saelens import ANYTHING

HELD = {
    "saelens": "gated",
    "dictionary_learning": "matryoshka",
    "sparsify": "topk",
    "openai": "relu",
    "gemma_scope": "gated",
}
READ_ALONE = ("llama_scope", "qwen_scope", "workbench")  # each has a file of tests of its own
every_format = pytest.mark.parametrize("form", HELD)
KEYS = {
    "dictionary_learning": "trainer buffer dict_class k lm_name submodule_name io ctx_len",
    "sparsify": "activation num_latents k skip_connection transcode d_in signed",
}


def test_each_format_has_a_case():
    assert HELD.keys() == writable().keys()
    assert FORMATS.keys() == {*writable(), *READ_ALONE}
    assert all(sae.config.rule for sae in ARCHITECTURES.values())


@every_format
def test_files_are_told_apart(tmp_path, form):
    writable()[form].write(trained(SMALL[HELD[form]]), ORIGIN, tmp_path / "a")
    assert [name for name, other in FORMATS.items() if other.recognises(tmp_path / "a")] == [form]
    assert not any(other.recognises(tmp_path) for other in FORMATS.values())


@every_format
def test_nothing_that_is_there_is_overwritten(tmp_path, form):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(FileExistsError):
        writable()[form].write(trained(SMALL[HELD[form]]), ORIGIN, tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@every_format
def test_rotten_bytes_are_read_or_refused(tmp_path, form):
    """Flipped bits, missing ends and overwritten zeros never lead to another error or to a number that is not finite."""
    writable()[form].write(trained(SMALL[HELD[form]]), ORIGIN, tmp_path / "a")
    whole = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    rng, refused = random.Random(0), []
    for _ in range(60):
        path, content = rng.choice([*whole.items()])
        rotten = bytearray(content)
        place, length = rng.randrange(len(rotten)), rng.choice([1, 8, 64])
        kind = rng.choice(["flip", "cut", "blank"])
        if kind == "flip":
            rotten[place] ^= 1 << rng.randrange(8)
        rotten[place:] = (
            rotten[place:]
            if kind == "flip"
            else b""
            if kind == "cut"
            else bytes(length) + rotten[place + length :]
        )
        path.write_bytes(rotten)
        try:
            assert FORMATS[form].read(tmp_path / "a").sae(rows(4)).isfinite().all()
        except ForeignError as error:
            refused.append(str(error))
        path.write_bytes(content)
    assert len(refused) > 10
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize("form", KEYS)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data())
def test_settings_of_any_kind_are_read_or_refused(tmp_path_factory, form, data):
    folder = tmp_path_factory.mktemp("any") / "a"
    writable()[form].write(trained(SMALL[HELD[form]]), ORIGIN, folder)
    (place,) = folder.glob("*.json")
    whole = json.loads(place.read_text())
    changes = data.draw(st.dictionaries(st.sampled_from(KEYS[form].split()), ANYTHING, max_size=3))
    for part in (whole, *(part for part in whole.values() if isinstance(part, dict))):
        part |= {
            key: value for key, value in changes.items() if key in part or key not in ("trainer", "buffer")
        }
    place.write_text(json.dumps(whole))
    with suppress(ForeignError):
        found = FORMATS[form].read(folder)
        assert torch.isfinite(found.sae(rows(2))).all()
        assert isinstance(found.origin.model, str | None) and isinstance(found.origin.hook, str | None)
        json.dumps(found.origin.facts, allow_nan=False)
