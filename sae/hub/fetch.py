"""Fetching files of the hub into its library's cache: only those needed, told before, checked, gone on with after a stop.

The library begins a file that broke off anew. Here what arrived of a file stays beside the cache's blobs and the rest is
asked for; a file is put into the cache once its bytes have the hash that the hub names."""

import errno
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

from activations import hub
from activations.disk import files
from activations.errors import HubError
from activations.progress import Progress, no_progress
from sae.hub.find import the_sae
from sae.hub.names import HubName, parse

T = TypeVar("T")
MAIN, OURS = "main", "workbench"
PAUSES = (0.5, 1.0, 2.0)  # seconds before a request that the hub could not answer is made again
SPARE = 2**26  # bytes to leave free on the disk


class Listing(NamedTuple):
    """What a repository holds at one commit."""

    name: HubName
    commit: str
    files: tuple[str, ...]
    silence: str | None
    """Why the hub was not asked; then the files are those in the cache."""


class Download(NamedTuple):
    """Files to fetch, and what of them the cache lacks."""

    listing: Listing
    files: tuple[str, ...]
    missing: dict[str, Any]
    """Path -> the hub's entry (size, hashes)."""

    @property
    def bytes_missing(self) -> int:
        """Size of what is still to be fetched; files that arrived in part count whole."""
        return sum(entry.size for entry in self.missing.values())


class Located(NamedTuple):
    """An SAE of the hub on this machine."""

    path: Path
    """Folder or file, in the hub's cache."""
    form: str
    """Its format."""
    name: HubName
    """Its name, with the path completed."""
    commit: str


def ignore_line(line: str) -> None:
    """Nobody reads."""


def locate(
    text: str | Path,
    form: str | None = None,
    progress: Progress = no_progress,
    tell: Callable[[str], None] = ignore_line,
) -> Located:
    """Return an SAE of the hub on this machine, fetching what the cache lacks; `tell` hears what and how much before.

    Raises HubError when the name is none, is not there or may not be read, when the hub does not answer and the cache
    does not hold it, when the disk has no room, or when what arrives is not what the hub says."""
    name = parse(text)
    listing = list_files(name)
    found = the_sae(name, listing.files, form)
    plan = plan_download(listing, found.files)
    if plan.missing:
        tell(f"fetching {found.form} {name._replace(path=found.path)}: {len(plan.missing)} of {len(plan.files)} files, "
             f"{size_shown(plan.bytes_missing)}")  # fmt: skip
    root = download(plan, progress)
    if found.form == OURS:
        root = _without_links(root, found.files)
    return Located(
        root / found.path if found.path else root, found.form, name._replace(path=found.path), listing.commit
    )


def _without_links(snapshot: Path, wanted: tuple[str, ...]) -> Path:
    """Return a folder beside the cache's snapshots with the same files: there they are links out of their folder, which
    nothing of ours follows. Hard links take no room; a disk that has none gets copies."""
    folder = snapshot.parents[1] / "plain" / snapshot.name
    for file in wanted:
        target = folder / file
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link((snapshot / file).resolve(), target)
            except OSError:
                files.write_atomically(target, lambda part, file=file: shutil.copyfile(snapshot / file, part))
    return folder


def size_shown(n: int) -> str:
    """Return a size as a person reads it: 12.3 MB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= one:
            return f"{n / one:,.1f} {unit}"
    return f"{n} bytes"


def list_files(name: HubName) -> Listing:
    """Return what a repository holds: as the hub says or, where that does not answer, as far as the cache has it."""
    from huggingface_hub import HfApi

    if silence := hub.silence():
        folder, commit = _snapshot(name, silence)
        held = tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
        return Listing(name, commit, held, silence)
    info = asked(name, lambda: HfApi().model_info(name.repository, revision=name.revision))
    return Listing(name, info.sha or MAIN, tuple(one.rfilename for one in info.siblings or ()), None)


def plan_download(listing: Listing, wanted: tuple[str, ...]) -> Download:
    """Return what of some files is to be fetched. Raises HubError when the disk has no room for it."""
    from huggingface_hub import HfApi

    name = listing.name
    lacking = [file for file in wanted if not (_folder(name) / "snapshots" / listing.commit / file).exists()]
    if not lacking:
        return Download(listing, wanted, {})
    if listing.silence:
        raise HubError(
            f"{listing.silence}, and the cache lacks {lacking[0]} of {name}: fetch it where the hub answers"
        )
    entries = asked(name, lambda: HfApi().get_paths_info(name.repository, lacking, revision=listing.commit))
    missing = {entry.path: entry for entry in entries}
    if lost := [file for file in lacking if file not in missing]:
        raise HubError(f"{name.repository} lists {lost[0]} and does not have it: try again")
    plan = Download(listing, wanted, missing)
    if (free := files.free_bytes(_cache())) < plan.bytes_missing + SPARE:
        raise HubError(
            f"{name} takes {size_shown(plan.bytes_missing)} and the disk of {_cache()} has {size_shown(free)} free: "
            f"make room, or set HF_HOME to a folder on another disk"
        )
    return plan


def download(plan: Download, progress: Progress = no_progress) -> Path:
    """Fetch what is missing and return the folder with all files. Called again after a stop it goes on where that was."""
    from huggingface_hub import hf_hub_download

    listing, name = plan.listing, plan.listing.name
    if plan.missing:
        with progress("fetch", plan.bytes_missing, "bytes") as advance:
            for file, entry in plan.missing.items():
                _fetch(name, listing.commit, file, entry, advance)
                asked(name, lambda file=file: hf_hub_download(name.repository, file, revision=listing.commit))
    if not listing.silence:
        reference = _folder(name) / "refs" / (name.revision or MAIN)
        files.write_atomically(reference, lambda part: part.write_text(listing.commit))
    return _folder(name) / "snapshots" / listing.commit


def _fetch(name: HubName, commit: str, file: str, entry: Any, advance: Callable[[int], None]) -> None:
    """Put one file among the cache's blobs, whose names are the hashes of their bytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob = _folder(name) / "blobs" / (entry.lfs.sha256 if entry.lfs else entry.blob_id)
    part = blob.with_name(blob.name + files.PART)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{part}.lock"):  # another command may be fetching the same
        if blob.exists():
            advance(entry.size)
            return
        done = part.stat().st_size if part.exists() else 0
        if done > entry.size:
            part.unlink()
            done = 0
        advance(done)
        url = hf_hub_url(name.repository, file, revision=commit)
        with part.open("ab") as raw:
            body = _Counted(raw, advance)
            asked(name, lambda: http_get(url, body, resume_size=raw.tell(), headers=build_hf_headers(),  # pyright: ignore[reportArgumentType]
                                          expected_size=entry.size), f"{file} of ", part)  # fmt: skip
        if _digest(part, entry) != blob.name:
            part.unlink()
            raise HubError(f"{file} of {name} arrived with other bytes than the hub says (its hash is not {blob.name}): "
                           f"nothing of it is kept, the same command fetches it anew")  # fmt: skip
        part.replace(blob)
    Path(f"{part}.lock").unlink(missing_ok=True)


class _Counted(io.RawIOBase):
    """A file that tells how many bytes are written, and takes back those that are cut off again."""

    def __init__(self, file: io.BufferedWriter, advance: Callable[[int], None]):
        self._file, self._advance = file, advance

    def write(self, data: Any) -> int:
        """Write, and count."""
        n = self._file.write(data)
        self._advance(n)
        return n

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the file."""
        return self._file.seek(place, whence)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off here: the server begins anew."""
        return self._file.truncate(size)


def _digest(path: Path, entry: Any) -> str:
    """Return the hash by which the hub knows a file: of large ones the SHA-256, of small ones git's."""
    if entry.lfs:
        return files.sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _snapshot(name: HubName, silence: str) -> tuple[Path, str]:
    """Return the cache's folder of a revision, and its commit. Raises HubError when it has none."""
    revision = name.revision or MAIN
    reference = _folder(name) / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = _folder(name) / "snapshots" / commit
    if not folder.is_dir():
        raise HubError(f"{silence}, and the cache in {_cache()} does not hold {name}: run the same command where the hub "
                       f"answers")  # fmt: skip
    return folder, commit


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder(name: HubName) -> Path:
    """Return the cache's folder of a repository."""
    return _cache() / f"models--{name.repository.replace('/', '--')}"


def asked(name: HubName, ask: Callable[[], T], what: str = "", part: Path | None = None) -> T:
    """Return an answer of the hub; ask again when it is out of order. Raises HubError for what it refuses."""
    from huggingface_hub import constants, errors

    pauses = iter(PAUSES)
    while True:
        try:
            return ask()
        except errors.GatedRepoError as error:
            raise HubError(f"{name.repository} is gated: ask for access at {constants.ENDPOINT}/{name.repository}, then "
                           f"run hf auth login (or set HF_TOKEN)") from error  # fmt: skip
        except errors.RevisionNotFoundError as error:
            raise HubError(
                f"{name.repository} has no revision {name.revision!r}: name a branch, tag or commit"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise HubError(f"there is no repository {name.repository} at {constants.ENDPOINT}, or it is private: check the "
                           f"spelling, or run hf auth login (or set HF_TOKEN)") from error  # fmt: skip
        except errors.EntryNotFoundError as error:
            raise HubError(f"{what}{name} is not there: {_line(error)}") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise HubError(f"{name.repository} may not be used by this account (status {status}): run hf auth login "
                               f"(or set HF_TOKEN) with a token that may") from error  # fmt: skip
            pause = next(pauses, None) if status == 429 or status >= 500 else None
            if pause is None:
                raise HubError(
                    f"the hub answers {what}{name} with status {status}: {_line(error)}; try again later"
                ) from error
            time.sleep(pause)
        except (
            errors.HTTPError,
            OSError,
            RuntimeError,
        ) as error:  # the last of an upload, from another of these
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            left = f" after {size_shown(part.stat().st_size)}" if part and part.exists() else ""
            raise HubError(
                f"{what}{name} broke off{left}: {_line(error)}; the same command goes on from there"
            ) from error


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
