"""Activations that another program has written become a store that is trained on, evaluated and read like any other."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from activations.rows import is_held_out
from activations.store import Store, verify
from sae.features.feature import FeatureStore
from sae.runs.run import Run
from tests.cli.commands import Server, contents

D = 12


def dump(folder: Path, files: list[dict[str, torch.Tensor]], **about: object) -> Path:
    """Write files and activations.json."""
    folder.mkdir(exist_ok=True)
    for number, tensors in enumerate(files):
        save_file(tensors, folder / f"part-{number}.safetensors")
    known = {"format": 1, "hook": "layer3", "model": "a vision model", "width": D, "tokenizer": None}
    (folder / "activations.json").write_text(json.dumps({**known, **about}))
    return folder


def patches(images: int = 40, each: int = 9) -> dict[str, torch.Tensor]:
    """Rows of some images, `each` patches an image, without token ids: a sum of two of twenty directions."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(20, D, generator=draw)
    chosen = torch.randint(20, (images * each, 2), generator=draw)
    return {"rows": directions[chosen].sum(1), "documents": torch.arange(images).repeat_interleave(each)}


def rows_of(store: Store, hook: str) -> list[tuple[int, int, int, list[float]]]:
    """Return (document, position, token, activations) of every row that counts, in order."""
    shards = [store.read(number, (hook,)) for number in range(len(store.shards))]
    return [
        (int(shard.documents[at]), int(shard.positions[at]), int(shard.tokens[at]), shard.activations[hook][at].tolist())
        for shard in shards
        for at in map(tuple, store.rows(shard).nonzero().tolist())
    ]  # fmt: skip


def imported(sae: Server, folder: Path, out: Path, **changes: object) -> Store:
    settings = {"context": 8, "shard-tokens": 64, **changes}
    ended = sae("store", "import", folder, "--out", out, *[part for name, value in settings.items() for part in (f"--{name}", value)])  # fmt: skip
    assert ended.code == 0, ended.err
    return Store(out)


def test_what_ten_lines_of_plain_code_write_is_trained_on_evaluated_and_read(
    sae: Server, world: Path, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    texts = [json.loads(line)["text"] for line in (world / "text.jsonl").read_text("utf-8").splitlines()]
    out = tmp_path / "dump"
    out.mkdir()
    # The lines of docs/your-activations.md
    rows, tokens, documents = [], [], []
    for number, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[:, :100]
        if not ids.numel():
            continue
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[1]
        rows.append(states[0])
        tokens.append(ids[0])
        documents.append(torch.full_like(ids[0], number))
    columns = {"rows": torch.cat(rows), "tokens": torch.cat(tokens), "documents": torch.cat(documents)}
    save_file(columns, out / "part-0.safetensors")
    about = {"format": 1, "hook": "blocks.0.hook_resid_post", "model": "toy", "width": 16, "tokenizer": str(world / "model")}  # fmt: skip
    (out / "activations.json").write_text(json.dumps(about))

    store = imported(sae, out, tmp_path / "store")
    found = rows_of(store, about["hook"])
    assert [row[2] for row in found] == columns["tokens"].tolist()
    assert torch.equal(torch.tensor([row[3] for row in found]), columns["rows"])
    assert not [fault for _, fault in verify(store) if fault]

    run = tmp_path / "run"
    flags = ["--arch.d-sae", 32, "--arch.k", 4, "--train.steps", 40, "--train.batch", 64]
    assert sae("train", "topk", "--store", store.path, "--out", run, *flags).code == 0
    ended = sae("evaluate", run)
    assert ended.code == 0, ended.err
    assert "no language model was run, and left out is what the SAE costs the model" in ended.out
    evaluation = Run(run).evaluation
    assert evaluation and evaluation.splice is None
    held_out = int(is_held_out(torch.tensor([document for document, *_ in found])).sum())
    assert evaluation.tokens == held_out > 0
    assert evaluation.estimates["fvu"].value is not None and evaluation.estimates["fvu"].value < 1
    ended = sae("features", run)
    assert ended.code == 0, ended.err
    assert "left out is the logit lens" in ended.out
    features = FeatureStore(run / "features")
    assert len(features.vocabulary) == len(tokenizer)
    assert "left out is what latents do on random" in sae("dead", run).out
    for command in (["steer", run, "--feature", 1, "--prompt", "the cat"], ["features", run, "--effects", 1]):
        line = sae(*command).complaint
        assert "trained on another program's files of toy, so that no language model can be run" in line


def test_rows_without_token_ids_read_as_their_places(sae: Server, tmp_path: Path):
    columns = patches()
    store = imported(sae, dump(tmp_path / "dump", [columns]), tmp_path / "store")
    expected = [(n // 9, n % 9, n % 9) for n in range(360)]
    assert [row[:3] for row in rows_of(store, "layer3")] == expected
    assert (store.windows, store.spec.model, store.spec.dataset["ids"]) == (45, "a vision model", 9)
    mean = columns["rows"].double().mean(0)
    torch.testing.assert_close(store.mean("layer3"), mean)  # no row is left out
    out = sae("store", "show", store.path).out
    assert "360 rows, all of which count" in out
    assert "not known" in out
    run = tmp_path / "run"
    flags = ["--arch.d-sae", 24, "--arch.k", 2, "--train.steps", 30, "--train.batch", 32]
    assert sae("train", "topk", "--store", store.path, "--out", run, *flags).code == 0
    assert sae("features", run).code == 0
    assert FeatureStore(run / "features").vocabulary == [f" {n}" for n in range(9)]
    line = sae("store", "label", store.path, "--labels", "surprise").complaint
    assert "no language model can say" in line


def test_the_store_does_not_depend_on_how_rows_are_spread_over_files(sae: Server, tmp_path: Path):
    columns = patches()
    one = imported(sae, dump(tmp_path / "dump", [columns]), tmp_path / "one")
    cuts = [0, 5, 5, 100, 131, 360]
    parts = [
        {name: column[start:stop].clone() for name, column in columns.items()}
        for start, stop in itertools.pairwise(cuts)
    ]
    many = imported(sae, dump(tmp_path / "parts", parts), tmp_path / "many")
    assert [entry.sha256 for entry in many.shards] == [entry.sha256 for entry in one.shards]


def test_positions_may_jump_and_rows_of_a_negative_document_are_left_out(sae: Server, tmp_path: Path):
    columns = patches()
    columns["positions"] = torch.arange(360) % 9 * 3
    columns["documents"][::5] = -1
    store = imported(sae, dump(tmp_path / "dump", [columns]), tmp_path / "store", dtype="float16")
    kept = [n for n in range(360) if n % 5]
    found = rows_of(store, "layer3")
    assert [row[:2] for row in found] == [(n // 9, n % 9 * 3) for n in kept]
    assert torch.equal(torch.tensor([row[3] for row in found]), columns["rows"][kept].half().float())
    for number in range(len(store.shards)):
        for split in ("train", "held-out", "all"):
            for positions in ("all", "last"):
                chosen = store.rows(store.read(number), split, positions=positions)
                assert store.count(number, split, positions=positions) == int(chosen.sum())


def test_any_negative_number_says_that_a_row_has_no_document(sae: Server, tmp_path: Path):
    columns = patches()
    columns["documents"][:3] = -2
    columns["documents"][9:11] = -7
    store = imported(sae, dump(tmp_path / "dump", [columns]), tmp_path / "store")
    kept = [n for n in range(360) if n not in (0, 1, 2, 9, 10)]
    counted = [n % 9 - {0: 3, 1: 2}.get(n // 9, 0) for n in kept]
    assert [row[:2] for row in rows_of(store, "layer3")] == [
        (n // 9, at) for n, at in zip(kept, counted, strict=True)
    ]


def test_rows_alone_are_documents_of_their_own(sae: Server, tmp_path: Path):
    store = imported(
        sae, dump(tmp_path / "dump", [{"rows": patches()["rows"].bfloat16()}]), tmp_path / "store"
    )
    assert [row[:3] for row in rows_of(store, "layer3")] == [(n, 0, 0) for n in range(360)]
    assert store.spec.dtype == "bfloat16"


def test_an_import_that_was_killed_ends_with_the_same_bytes(sae: Server, tmp_path: Path):
    folder = dump(tmp_path / "dump", [patches()])
    whole = contents(imported(sae, folder, tmp_path / "whole").path)
    flags = ["--out", tmp_path / "store", "--context", 8, "--shard-tokens", 64]
    ended = sae("store", "import", folder, *flags, kill_at=(30, tmp_path / "store"))
    assert ended.code == -9
    assert list((tmp_path / "store").glob("shard-*.json"))
    assert contents(imported(sae, folder, tmp_path / "store").path) == whole


def rows(**columns: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"rows": torch.zeros(4, D), **columns}


MISTAKES = {
    "no file": ([], {}, ["no .safetensors file"]),
    "another width": ([rows()], {"width": 13}, ["shape [4, 12]", "[n, 13]"]),
    "a newer format": ([rows()], {"format": 2}, ["format 2", "reads 1"]),
    "a hook point that is no name": ([rows()], {"hook": 3}, ["hook = 3"]),
    "rows of whole numbers": ([{"rows": torch.zeros(4, D, dtype=torch.int64)}], {}, ["I64", "float16"]),
    "no rows": ([{"x": torch.zeros(4, D)}], {}, ["has x", "expected rows"]),
    "fewer tokens than rows": ([rows(tokens=torch.zeros(3, dtype=torch.int64))], {}, ["tokens of shape [3]", "4 rows"]),
    "tokens that are fractions": ([rows(tokens=torch.zeros(4))], {}, ["tokens", "float32", "whole numbers"]),
    "a negative token": ([rows(tokens=torch.tensor([0, 1, 2, -1]))], {}, ["from -1 to"]),
    "an id beyond all": ([rows(tokens=torch.tensor([0, 1, 2, 2**24]))], {}, ["16,777,216", "without a tokenizer"]),
    "other columns": ([rows(), rows(documents=torch.zeros(4, dtype=torch.int64))], {}, ["part-1", "documents", "the same"]),
    "no document at all": ([rows(documents=torch.full((4,), -1))], {}, ["no row"]),
    "a tokenizer nobody has": ([rows()], {"tokenizer": "nobody/nothing"}, ["the tokenizer 'nobody/nothing'"]),
    "a row that is not finite": ([{"rows": torch.full((4, D), float("nan"))}], {}, ["NaN", "negative document"]),
}  # fmt: skip


@pytest.mark.parametrize(("files", "about", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(sae: Server, tmp_path: Path, files: list, about: dict, says: list[str]):
    folder = dump(tmp_path / "dump", files, **about)
    line = sae("store", "import", folder, "--out", tmp_path / "store").complaint
    assert all(part in line for part in says), line
    assert not list(tmp_path.glob("store/*.safetensors"))


def test_damaged_files_and_a_folder_of_something_else_are_one_line(sae: Server, tmp_path: Path):
    assert (
        "has no activations.json" in sae("store", "import", tmp_path, "--out", tmp_path / "store").complaint
    )
    folder = dump(tmp_path / "dump", [patches()])
    whole = (folder / "part-0.safetensors").read_bytes()
    (folder / "part-0.safetensors").write_bytes(whole[:1000])
    assert (
        "part-0.safetensors cannot be read"
        in sae("store", "import", folder, "--out", tmp_path / "store").complaint
    )
    (folder / "activations.json").write_text('{"format": ')
    assert (
        "activations.json cannot be used"
        in sae("store", "import", folder, "--out", tmp_path / "store").complaint
    )
    assert not (tmp_path / "store").exists()
