"""Files are written whole or not at all, and the same content gives the same bytes."""

import hashlib
import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from activations.disk import files


class Interrupted(BaseException):
    """Stands for what a signal handler may raise at any moment."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), ValueError("bad"), Interrupted()])
@pytest.mark.parametrize("half_way", [False, True])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, fault: BaseException, half_way: bool
):
    path = tmp_path / "a"
    path.write_text("old")

    def write(part: Path) -> None:
        if half_way:
            part.write_text("half")
        raise fault

    with pytest.raises(type(fault)):
        files.write_atomically(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_while_a_file_is_written_readers_see_the_old_one(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("new")
        assert path.read_text() == "old"

    files.write_atomically(path, write)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_two_that_write_one_file_at_once_each_write_it_whole(tmp_path: Path):
    path = tmp_path / "a"

    def write(part: Path) -> None:
        part.write_text("first")
        files.write_atomically(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    files.write_atomically(path, write)
    assert path.read_text() == "first"
    assert names(tmp_path) == ["a"]


def test_what_a_crash_left_is_swept_and_disturbs_no_writer(tmp_path: Path):
    left = []

    def killed(part: Path) -> None:
        part.write_text("a longer half of something that was cut off")
        left.append(part)

    files.write_atomically(tmp_path / "a.json", killed)
    left[0].write_text("as a killed process leaves it")
    files.write_json(tmp_path / "a.json", [1])
    assert not files.is_taken(tmp_path, ["a.json"])
    files.sweep(tmp_path)
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert names(tmp_path) == ["a.json"]


def test_missing_folders_are_made(tmp_path: Path):
    files.write_json(tmp_path / "a" / "b" / "c.json", {})
    assert (tmp_path / "a" / "b" / "c.json").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_without_a_number_for_it_is_refused_and_the_old_file_stays(tmp_path: Path, number: float):
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"x": [number]})
    assert json.loads(path.read_text()) == {"x": 1}
    assert names(tmp_path) == ["a.json"]


def test_json_is_utf_8_and_ends_with_a_newline(tmp_path: Path):
    files.write_json(tmp_path / "a.json", {"é": "鳥"})
    assert (tmp_path / "a.json").read_bytes() == '{\n "é": "鳥"\n}\n'.encode()


def test_a_sealed_file_is_the_plain_one_and_a_line_with_its_sha_256(tmp_path: Path):
    content = {"a": [1, "é"], "b": None}
    files.write_json(tmp_path / "plain", content)
    files.write_sealed(tmp_path / "sealed", content)
    plain, sealed = ((tmp_path / name).read_bytes() for name in ("plain", "sealed"))
    first, second, *rest = sealed.splitlines(keepends=True)
    assert second == f' "checksum": "{hashlib.sha256(plain).hexdigest()}",\n'.encode()
    assert first + b"".join(rest) == plain == files.unsealed(sealed) == files.unsealed(plain)
    assert files.read_json(tmp_path / "sealed") == files.read_json(tmp_path / "plain") == content


def test_whatever_bit_of_a_sealed_file_is_flipped_it_is_refused(tmp_path: Path):
    content = {"a": [1, 2.5], "b": {"c": "words", "d": None}, "e": True}
    files.write_sealed(tmp_path / "a", content)
    whole = (tmp_path / "a").read_bytes()
    for place in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "a").write_bytes(changed)
        with pytest.raises(ValueError):  # noqa: PT011 - raised by whichever reader meets the damage first
            print(place, files.read_json(tmp_path / "a"))


def test_a_sealed_file_that_was_written_again_by_something_else_is_read(tmp_path: Path):
    files.write_sealed(tmp_path / "a", {"x": 1})
    (tmp_path / "a").write_text(json.dumps({**json.loads((tmp_path / "a").read_text()), "x": 2}))
    assert files.read_json(tmp_path / "a") == {"x": 2}


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path: Path):
    tensors = {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.arange(4, dtype=torch.int32),
        "c": torch.ones(3).bfloat16(),
    }
    files.write_tensors(tmp_path / "1", tensors, "test-1")
    files.write_tensors(tmp_path / "2", dict(reversed(tensors.items())), "test-1")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert names(tmp_path) == ["1", "2"]


def test_tensors_come_back_as_they_were_however_they_lay_in_memory(tmp_path: Path):
    x = torch.arange(12.0).view(3, 4)
    files.write_tensors(
        tmp_path / "a", {"turned": x.T, "part": x[1:, ::2], "own": x.requires_grad_()}, "test-1"
    )
    found = load_file(tmp_path / "a")
    assert torch.equal(found["turned"], x.detach().T)
    assert torch.equal(found["part"], x.detach()[1:, ::2])
    assert torch.equal(found["own"], x.detach())


def test_files_of_tensors_are_readable_for_everyone(tmp_path: Path):
    files.write_tensors(tmp_path / "a", {"x": torch.ones(2)}, "test-1")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o444 == 0o444


def test_a_tensor_file_names_its_format(tmp_path: Path):
    files.write_tensors(tmp_path / "a", {"x": torch.ones(2)}, "test-7")
    content = (tmp_path / "a").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "test-7"}


def test_the_digest_is_sha_256(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_the_free_space_of_a_folder_yet_to_be_made_is_its_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "there").mkdir()
    asked: list[Path] = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=17))
    assert files.free_bytes(tmp_path / "there" / "not" / "yet") == 17
    monkeypatch.chdir(tmp_path)
    assert files.free_bytes(Path("not/yet")) == 17
    assert asked == [tmp_path / "there", tmp_path]
