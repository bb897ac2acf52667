"""A .pt may hold tensors and plain containers. No code in it is run, and it does not decide how much memory it takes."""

import io
import zipfile
from functools import partial

import pytest
import torch

from activations.errors import ForeignError
from sae.foreign.weights import Weights, read_pt


class Opened:
    """An object whose unpickling fails the test."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was opened",)


def swollen(path):
    """Write a file whose storage of zeros is compressed to a thousandth."""
    torch.save({"x": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(10**8) if name.endswith("data/0") else content)


def cut(path):
    torch.save({"x": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (partial(torch.save, {"x": Opened()}), "cannot be read safely"),
        (partial(torch.save, torch.nn.Linear(2, 2)), "cannot be read safely"),
        (
            partial(torch.save, {"x": Opened()}, _use_new_zipfile_serialization=False),
            "is not an archive of arrays",
        ),
        (
            partial(torch.save, {"x": torch.ones(2)}, _use_new_zipfile_serialization=False),
            "is not an archive of arrays",
        ),
        (swollen, "would decompress to 100 MB, more than 8 times its size"),
        (cut, "is not an archive of arrays"),
        (lambda path: path.write_text("<html>not found</html>"), "is not an archive of arrays"),
    ],
    ids=["code", "a module", "code in the old form", "the old form", "swollen", "cut short", "a page"],
)
def test_anything_else_is_refused_in_one_line(tmp_path, write, said):
    write(tmp_path / "ae.pt")
    with pytest.raises(ForeignError, match=said) as error:
        read_pt(tmp_path / "ae.pt")
    assert "\n" not in str(error.value)


def test_tensors_and_plain_containers_are_read(tmp_path):
    content = {"x": torch.arange(3.0), "about": {"k": 3, "name": "topk", "list": [1.5, None]}}
    torch.save(content, tmp_path / "ae.pt")
    found = read_pt(tmp_path / "ae.pt")
    assert torch.equal(found.pop("x"), content.pop("x")) and found == content


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(()).expand(10**6, 10**6), torch.empty(3, 3, device="meta"), torch.eye(3).to_sparse()],
    ids=["strides of 0", "meta", "sparse"],
)
def test_a_tensor_that_has_not_all_its_numbers_is_refused(tmp_path, tensor):
    buffer = io.BytesIO()
    torch.save({"x": tensor}, buffer)
    buffer.seek(0)
    found = torch.load(buffer, weights_only=True)
    with pytest.raises(ForeignError, match="x claims more numbers than the file holds"):
        Weights(tmp_path / "ae.pt", found).take("x", None, None)
