"""Fetch an SAE's files from the hub into the hub library's cache, announce their size, verify hashes, resume downloads.

The hub library starts a file again from its first byte when a download breaks off. Here the bytes that arrived stay beside
the cache's blobs and only the rest is requested. A file enters the cache once its bytes have the hash that the hub gives."""

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
from activations.progress import Advance, Progress, no_progress
from sae.hub import HubName, parse_name
from sae.hub.find import the_sae

T = TypeVar("T")
MAIN, OURS = "main", "workbench"
PAUSES = (0.5, 1.0, 2.0)  # seconds to wait before each retry of a request that the hub could not answer
SPARE = 2**26  # bytes left free on the disk


class Listing(NamedTuple):
    """The files of a repository at one commit."""

    name: HubName
    commit: str
    files: tuple[str, ...]
    silence: str | None
    """Why the hub could not be asked, so that `files` are those in the cache; None when it answered."""


class HubFile(NamedTuple):
    """The size of a file on the hub, and the hash by which the hub identifies it."""

    size: int
    digest: str
    is_large: bool
    """Whether the hash is a SHA-256, as of large files; git's hash of a blob otherwise."""


class Download(NamedTuple):
    """The files an SAE needs, and which of them the cache lacks."""

    listing: Listing
    files: tuple[str, ...]
    missing: dict[str, HubFile]
    """By path."""

    @property
    def bytes_missing(self) -> int:
        """Size of the missing files; a file that arrived in part counts in full."""
        return sum(file.size for file in self.missing.values())


class Located(NamedTuple):
    """An SAE of the hub on this machine."""

    path: Path
    """Its folder or file in the hub's cache."""
    form: str
    """Name of its format."""
    name: HubName
    """Its name with the full path."""
    commit: str


def ignore_line(line: str) -> None:
    """Do nothing with a line meant for the user."""


def locate(
    text: str | Path,
    form: str | None = None,
    progress: Progress = no_progress,
    tell: Callable[[str], None] = ignore_line,
) -> Located:
    """Fetch the files of an SAE that the cache lacks, and return where the SAE lies on this machine.

    `tell` is called with a line about the files and their size before anything is fetched. Raises HubError when the name is
    invalid, does not exist or may not be read, when the hub does not answer and the cache lacks the SAE, when the disk has
    no room, or when the bytes that arrive do not have the hub's hash."""
    name = parse_name(text)
    listing = list_files(name)
    sae = the_sae(name, listing.files, form)
    full_name = name._replace(path=sae.path)
    plan = plan_download(listing, sae.files)
    if plan.missing:
        tell(f"fetching {sae.form} {full_name}: {len(plan.missing)} of {len(plan.files)} files, "
             f"{size_shown(plan.bytes_missing)}")  # fmt: skip
    root = download(plan, progress)
    if sae.form == OURS:
        root = _without_links(root, sae.files)
    return Located(root / sae.path if sae.path else root, sae.form, full_name, listing.commit)


def _without_links(snapshot: Path, wanted: tuple[str, ...]) -> Path:
    """Return a folder with the files of a snapshot, without symbolic links.

    A snapshot in the hub's cache consists of symbolic links to blobs outside its folder, and readers of run folders refuse
    to follow links out of them. Hard links take no space; file systems without hard links get copies."""
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
    """Format a size for people, as in 12.3 MB."""
    for unit, n_bytes in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= n_bytes:
            return f"{n / n_bytes:,.1f} {unit}"
    return f"{n} bytes"


def list_files(name: HubName) -> Listing:
    """Return a repository's files: all of them if the hub answers, otherwise those in the cache."""
    from huggingface_hub import HfApi

    if silence := hub.silence():
        folder, commit = _snapshot(name, silence)
        cached = tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))
        return Listing(name, commit, cached, silence)
    info = asked(name, lambda: HfApi().model_info(name.repository, revision=name.revision))
    return Listing(name, info.sha or MAIN, tuple(file.rfilename for file in info.siblings or ()), None)


def plan_download(listing: Listing, wanted: tuple[str, ...]) -> Download:
    """Return which of the wanted files must be fetched.

    Raises HubError when the disk has no room for them, or when the hub does not answer and the cache lacks one."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    name = listing.name
    lacking = [file for file in wanted if not (_folder(name) / "snapshots" / listing.commit / file).exists()]
    if not lacking:
        return Download(listing, wanted, {})
    if listing.silence:
        raise HubError(
            f"{listing.silence}, and the cache lacks {lacking[0]} of {name}: fetch it when the hub answers"
        )
    entries = asked(name, lambda: HfApi().get_paths_info(name.repository, lacking, revision=listing.commit))
    missing = {
        entry.path: HubFile(
            entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.lfs is not None
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    if lost := [file for file in lacking if file not in missing]:
        raise HubError(f"{name.repository} lists {lost[0]} but does not have it: try again")
    plan = Download(listing, wanted, missing)
    if (free := files.free_bytes(_cache())) < plan.bytes_missing + SPARE:
        raise HubError(
            f"{name} needs {size_shown(plan.bytes_missing)} and the disk of {_cache()} has {size_shown(free)} free: "
            f"make room, or set HF_HOME to a folder on another disk"
        )
    return plan


def download(plan: Download, progress: Progress = no_progress) -> Path:
    """Fetch the missing files and return the folder with all files. A download that was interrupted is resumed."""
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


def _fetch(name: HubName, commit: str, file: str, entry: HubFile, advance: Advance) -> None:
    """Fetch one file into the cache's blobs, whose names are the hashes of their bytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob = _folder(name) / "blobs" / entry.digest
    part = blob.with_name(blob.name + files.PART)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{part}.lock"):  # another process may be fetching the same file
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
            body = _Counted(raw, entry.size, advance)
            asked(name, lambda: http_get(url, body, resume_size=raw.tell(), headers=build_hf_headers(),  # pyright: ignore[reportArgumentType]
                                          expected_size=entry.size), f"{file} of ", part)  # fmt: skip
        if _digest(part, entry) != blob.name:
            part.unlink()
            raise HubError(f"{file} of {name} arrived damaged (its hash is not {blob.name}, which the hub gives) and was "
                           f"deleted: run the same command to fetch it again")  # fmt: skip
        part.replace(blob)
    Path(f"{part}.lock").unlink(missing_ok=True)


class _Counted(io.RawIOBase):
    """A file object that reports by how many bytes the file has grown, up to `size`.

    A server that ignores the request for the rest of a file sends it from its start; bytes that were reported before are
    not reported again, so that the sum never exceeds the size."""

    def __init__(self, file: io.BufferedWriter, size: int, advance: Advance):
        self._file, self._size, self._advance = file, size, advance
        self._reported = file.tell()

    def write(self, data: Any) -> int:
        """Write the bytes and report those that no earlier write has reached."""
        n = self._file.write(data)
        end = min(self._file.tell(), self._size)
        if end > self._reported:
            self._advance(end - self._reported)
            self._reported = end
        return n

    def tell(self) -> int:
        """Return the position in the file."""
        return self._file.tell()

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the file."""
        return self._file.seek(position, whence)

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off at `size`, or here; the library does this when a server sends the file from its start."""
        return self._file.truncate(size)


def _digest(path: Path, entry: HubFile) -> str:
    """Return the hash by which the hub identifies a file: SHA-256 for large files, git's blob hash for small ones."""
    if entry.is_large:
        return files.sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _snapshot(name: HubName, silence: str) -> tuple[Path, str]:
    """Return the cache's folder of a revision and its commit. Raises HubError when the cache does not hold it."""
    revision = name.revision or MAIN
    reference = _folder(name) / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = _folder(name) / "snapshots" / commit
    if not folder.is_dir():
        raise HubError(f"{silence}, and the cache in {_cache()} does not hold {name}: run the same command when the "
                       f"hub answers")  # fmt: skip
    return folder, commit


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder(name: HubName) -> Path:
    """Return the repository's folder in the cache."""
    return _cache() / f"models--{name.repository.replace('/', '--')}"


def asked(name: HubName, ask: Callable[[], T], what: str = "", part: Path | None = None) -> T:
    """Return the hub's answer to a request, retrying while it is overloaded or out of order.

    Raises HubError for a request that it refuses or cannot answer. `what` stands before the name in errors; `part` is the
    partly fetched file, whose size they state."""
    from huggingface_hub import constants, errors

    pauses = iter(PAUSES)
    while True:
        try:
            return ask()
        except errors.GatedRepoError as error:
            raise HubError(f"{name.repository} is gated: ask for access at {constants.ENDPOINT}/{name.repository}, then "
                           f"log in or set HF_TOKEN", fix="hf auth login") from error  # fmt: skip
        except errors.RevisionNotFoundError as error:
            raise HubError(
                f"{name.repository} has no revision {name.revision!r}: name a branch, tag or commit"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise HubError(f"{name.repository} does not exist at {constants.ENDPOINT}, or is private: check the spelling, "
                           f"log in or set HF_TOKEN", fix="hf auth login") from error  # fmt: skip
        except errors.EntryNotFoundError as error:
            raise HubError(f"{what}{name} does not exist: {_line(error)}") from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise HubError(f"this account may not use {name.repository} (status {status}): log in, or set HF_TOKEN, with "
                               f"a token that may", fix="hf auth login") from error  # fmt: skip
            pause = next(pauses, None) if status == 429 or status >= 500 else None
            if pause is None:
                raise HubError(
                    f"the hub answers {what}{name} with status {status}: {_line(error)}; try again later"
                ) from error
            time.sleep(pause)
        except (errors.HTTPError, OSError, RuntimeError) as error:
            # an upload wraps the first two in a RuntimeError; a full disk is reported by the command line itself
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            left = f" after {size_shown(part.stat().st_size)}" if part and part.exists() else ""
            raise HubError(
                f"{what}{name} broke off{left}: {_line(error)}; run the same command to resume"
            ) from error


def _line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
