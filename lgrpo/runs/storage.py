"""Where files lie: folders of this machine, or places in a bucket (gs://bucket/folder), behind one set of functions.

A local path is a `pathlib.Path`. A bucket is read and written through `etils.epath` with gcsfs (the extra `gcs`), and through
google-cloud-storage where a write depends on what is there. A bucket knows no folders, no rename and no appending: an object is whole or absent,
and what must hold of several objects together needs one that is written last. No function here shows a credential.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

from lgrpo.errors import UserError

if TYPE_CHECKING:
    from etils import epath

Place: TypeAlias = "pathlib.Path | epath.Path"
PathLike: TypeAlias = "str | os.PathLike[str]"

PATIENCE = 60.0
"""Seconds for which a request to a bucket that fails as if it could succeed later is made again. gcsfs has a limit of its own, half a minute."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")
_SECRET = re.compile(
    r"(?i)(\bbearer\s+|\btoken[=:\s]+|\bkey[=:\s]+|[?&][\w-]*(?:token|signature|credential|upload_id|key)[\w-]*=)[^\s&'\"]+|ya29\.[\w.-]+"
)
_THREADS = 8
PART = ".part"
"""Ends the name of what is about to be added to an object."""


def remote(path: PathLike) -> bool:
    """Whether a path is one of a bucket."""
    return os.fspath(path).startswith("gs://")


def place(path: PathLike) -> Place:
    """A path as the user gives it, with ~ expanded. gs:// becomes an `epath.Path`.

    Errors: UserError for another scheme, for a bucket without gcsfs installed, and, at its first sight, for a bucket that is not there, may not
    be listed or does not answer.
    """
    text = os.fspath(path)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return pathlib.Path(text).expanduser()
    if scheme[1] != "gs" or not _BUCKET.fullmatch(text):
        raise UserError(f"{text}: no path; give a folder of this machine, or gs://BUCKET/FOLDER as text")
    _open_bucket(text.split("/")[2])
    from etils import epath

    return epath.Path(text)


def absolute(path: PathLike) -> Place:
    """As place, from the root of the file system. (epath takes a bucket for a folder of this one.)"""
    found = place(path)
    return found if remote(found) else found.absolute()


def resolved(path: Place) -> Place:
    """Without links and `..`, where there can be some."""
    return path if remote(path) else path.resolve()


@functools.cache
def _open_bucket(name: str) -> None:
    """Errors: UserError."""
    if missing := [m for m in ("gcsfs", "google.cloud.storage") if not _installed(m)]:
        raise UserError(f"gs://{name}: reading and writing buckets needs {missing[0]}; pip install 'lgrpo[gcs]' (or gcsfs)")
    import absl.logging
    import fsspec

    # Another process writes there too: what was listed a while ago is no answer.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    # It says before each retry and each failure what we say once, where it matters.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL + 1)
    absl.logging.get_absl_logger().addFilter(_one_line)  # Orbax: a request that failed comes with every frame it went through, three times
    with explained(f"gs://{name}"):
        next(iter(_client().list_blobs(name, max_results=1, retry=_retry())), None)


def _one_line(record: logging.LogRecord) -> bool:
    """Filter of a log: errors without traceback and masked."""
    if record.exc_info:
        record.msg, record.args, record.exc_info = clean(record.getMessage()), (), None
    return True


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def _client() -> Any:
    from google.cloud import storage

    return storage.Client()


def _retry(seconds: float | None = None) -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(PATIENCE if seconds is None else seconds)


def _blob(path: PathLike) -> Any:
    _, _, bucket, name = os.fspath(path).split("/", 3)
    return _client().bucket(bucket).blob(name)


def _system(path: PathLike) -> Any:
    from etils.epath import backend

    return backend.fsspec_backend.fs(path)


# -- what went wrong ----------------------------------------------------------------------------------------------------------------------


def errors() -> tuple[type[BaseException], ...]:
    """What reading and writing raises when it fails: of a file system, and of a bucket where one was opened."""
    if not _open_bucket.cache_info().currsize:
        return (OSError,)
    import aiohttp
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, TimeoutError, HttpError, aiohttp.ClientError, GoogleAPIError, GoogleAuthError)


def masked(text: str) -> str:
    """A text without what could be a credential."""
    return _SECRET.sub(lambda m: f"{m[1] or ''}...", text)


def clean(text: object) -> str:
    """An error's text on one line, of bounded length and masked."""
    return masked(" ".join(str(text).split()))[:300]


def reason(error: BaseException) -> str:
    """What a bucket, its network or its credentials did, in one line; "" for any other error."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    code = getattr(error, "code", None)
    said = f"({clean(error)})" if str(error) else f"({type(error).__name__})"
    foreign = kinds & {"gcsfs.HttpError", "google.GoogleAPICallError", "google.ClientError"}
    if "google.GoogleAuthError" in kinds or (foreign and code == 401):
        return (
            f"no valid Google credentials {said}; run `gcloud auth application-default login`, or give the machine's service account "
            "the role Storage Object Admin"
        )
    if (foreign and code == 403) or str(error).startswith("Forbidden: "):
        return f"no permission {said}; give the account of this machine the role Storage Object Admin on the bucket"
    if (foreign and code == 404) or re.match(r"Bucket does not exist|b/[^/]+/o$", str(error)):
        return f"no such bucket or object {said}; make the bucket first (gcloud storage buckets create), or mend its name"
    lost = {"aiohttp.ClientError", "requests.RequestException", "google.RetryError", "fsspec.FSTimeoutError", "urllib3.HTTPError"}
    if kinds & lost or foreign or "storage.googleapis.com" in str(error):
        return f"the storage does not answer as it should {said}; mend the network or wait, then run the same command again"
    return ""


@contextlib.contextmanager
def explained(what: PathLike) -> Iterator[None]:
    """Errors: UserError naming `what` in place of an error of a bucket. Errors of local files stay as they are."""
    try:
        yield
    except Exception as error:
        if remote(what) and (said := reason(error)):
            raise UserError(f"{os.fspath(what)}: {said}") from error
        raise


# -- reading ------------------------------------------------------------------------------------------------------------------------------


def files_below(folder: Place) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; [] when there is none."""
    if not remote(folder):
        found = [os.path.relpath(os.path.join(root, f), folder) for root, _, files in os.walk(folder) for f in files]
        return sorted(found)
    start = f"{os.fspath(folder).removeprefix('gs://').rstrip('/')}/"
    # Names that end in "/" are placeholders that consoles make for folders.
    found = _system(folder).find(str(folder))  # a file finds itself
    return sorted(name.removeprefix(start) for name in found if name.startswith(start) and not name.endswith("/"))


def text_of(path: Place) -> str:
    """The text of a UTF-8 file, without the mark that some editors put in front. Errors: UnicodeDecodeError; those of `errors()`."""
    return path.read_bytes().decode("utf-8-sig")


_copies: dict[str, pathlib.Path] = {}


def local(path: PathLike) -> pathlib.Path:
    """A file or folder as one of this machine: itself, or a copy of what the bucket holds, made once and gone with the process.

    For libraries that open paths themselves; what is read once is better read through `place`. A path that is not there gives one that is not.
    """
    at = place(path)
    if not remote(at):
        return at
    if str(at) not in _copies:
        root = pathlib.Path(tempfile.mkdtemp(prefix="lgrpo-bucket-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        target = root / at.name
        with explained(at):
            download(at, target)
        _copies[str(at)] = target
    return _copies[str(at)]


def download(source: Place, target: pathlib.Path) -> None:
    """Copies a file or a folder of a bucket to `target`, which is not there yet; nothing is made of what is not there."""
    names = files_below(source)
    if not names and not source.exists():
        return
    pairs = [(source / name, target / name) for name in names] or [(source, target)]

    def one(pair: tuple[Place, pathlib.Path]) -> None:
        pair[1].parent.mkdir(parents=True, exist_ok=True)
        _system(source).get_file(str(pair[0]), str(pair[1]))

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(one, pairs))


# -- writing ------------------------------------------------------------------------------------------------------------------------------


def write_bytes(path: Place, data: bytes) -> None:
    """Writes a file at once or not at all, and the folders above it."""
    if remote(path):
        _system(path).pipe_file(str(path), data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Place, text: str) -> None:
    """As write_bytes, in UTF-8."""
    write_bytes(path, text.encode())


def upload(source: pathlib.Path, target: Place, last: str = "") -> None:
    """Copies a local folder into a bucket. last: the file of it that says that the others are there, written when they are."""
    names = files_below(source)

    def one(name: str) -> None:
        _system(target).put_file(str(source / name), str(target / name))

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(one, [name for name in names if name != last]))
    if last in names:
        one(last)


def move_folder(source: Place, target: Place, first: str = "") -> None:
    """Moves a folder to a place that is free. In a bucket its objects are copied, then removed; first: the one that says that the others are
    there, which goes before them, so that a move that was interrupted leaves no folder that looks whole."""
    if not remote(source):
        source.rename(target)
        return
    names, system = files_below(source), _system(source)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: system.cp_file(str(source / name), str(target / name)), names))
    remove_folder(source, first)


def remove_folder(folder: Place, first: str = "") -> None:
    """Removes a folder where there is one. first: the file that goes before the others."""
    if not remote(folder):
        if first:
            (folder / first).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return
    names = files_below(folder)
    if first in names:
        _system(folder).rm_file(str(folder / first))
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: _system(folder).rm_file(str(folder / name)), [name for name in names if name != first]))


# -- writes that depend on what is there (buckets only) -----------------------------------------------------------------------------------


def read_version(path: Place, seconds: float | None = None) -> tuple[str, int]:
    """Text of an object and its generation; ("", 0) when there is none. seconds: patience. Errors: those of `errors()`."""
    from google.api_core.exceptions import NotFound

    blob = _blob(path)
    try:
        return blob.download_as_bytes(retry=_retry(seconds)).decode(errors="replace"), int(blob.generation)
    except NotFound:
        return "", 0


def write_version(path: Place, text: str, version: int, seconds: float | None = None) -> int:
    """Writes an object only where its generation is still `version` (0: where there is none). Returns the new generation, 0 where it was another.

    Errors: those of `errors()`.
    """
    from google.api_core.exceptions import PreconditionFailed

    blob = _blob(path)
    try:
        blob.upload_from_string(text, if_generation_match=version, retry=_retry(seconds))
        return int(blob.generation)
    except PreconditionFailed:
        # An answer may have been lost and the request made again: then what is there is ours.
        found, now = read_version(path, seconds)
        return now if found == text else 0


def remove_version(path: Place, version: int, seconds: float | None = None) -> None:
    """Removes an object where its generation is still `version`. Errors: those of `errors()`."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with contextlib.suppress(NotFound, PreconditionFailed):
        _blob(path).delete(if_generation_match=version, retry=_retry(seconds))


def replace(path: Place, data: bytes) -> int:
    """Writes an object, whatever is there. Returns its generation. Errors: those of `errors()`."""
    blob = _blob(path)
    blob.upload_from_string(data, retry=_retry())  # the same again does no harm
    return int(blob.generation)


def append(path: Place, data: bytes, version: int) -> int:
    """Adds to an object whose generation is `version`. Returns the new generation, 0 where it was another and nothing was added.

    Errors: those of `errors()`.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    whole, part = _blob(path), _blob(f"{path}{PART}")
    part.upload_from_string(data, retry=_retry())
    try:
        whole.reload(retry=_retry())
        if whole.generation != version:
            return 0
        whole.compose([whole, part], if_generation_match=version, retry=_retry())
    except (NotFound, PreconditionFailed):
        return 0
    finally:
        with contextlib.suppress(*errors()):
            part.delete(retry=_retry(1.0))
    return int(whole.generation)
