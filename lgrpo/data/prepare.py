"""The one way in which a tensorflow-datasets builder is made to write its data, where it writes it, and what a bucket keeps of it."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from lgrpo.config import DataConfig
from lgrpo.errors import UserError
from lgrpo.runs import storage

_INFO = "dataset_info.json"  # without it a folder is no data set


def local_root(data_dir: str) -> pathlib.Path:
    """Folder in which tensorflow-datasets works: data.data_dir itself, or for one in a bucket, whose files its readers cannot open, a copy of it."""
    at = storage.place(data_dir)
    return pathlib.Path(DataConfig.data_dir).expanduser().parent / "buckets" / str(at).removeprefix("gs://") if storage.remote(at) else at


def keep(here: pathlib.Path, data_dir: str, last: str, make: Callable[[], Any]) -> None:
    """A folder below local_root. What data.data_dir has of it in a bucket is fetched; else `make` makes it, and it is put there. last: the file
    that says that the others are there.

    Errors: those of `make` and of storage.errors().
    """
    there = storage.place(data_dir) / here.relative_to(local_root(data_dir)).as_posix() if storage.remote(data_dir) else None
    kept = there is not None and (there / last).exists()
    if kept and not here.exists():
        _fetch(there, here)
        return
    make()
    if there is not None and not kept:
        storage.upload(here, there, last=last)


def download_and_prepare(builder: Any, data_dir: str) -> None:
    """Prepares quietly: tfds prints, but stdout belongs to the caller, and by default it would first ask its cloud bucket, which may hang
    without a network. builder: with local_root as its folder.

    Errors: whatever the builder raises; those of storage.errors().
    """

    def make() -> None:
        import tensorflow_datasets as tfds  # here, because runs on JSON lines do not need it

        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))

    keep(pathlib.Path(builder.data_path), data_dir, _INFO, make)


def ready(builder: Callable[[], Any], data_dir: str) -> Any:
    """A builder that is ready to read, prepared unless that was done before. builder: makes one, with local_root or a folder below it as its folder.

    tfds writes into a folder with a random name and renames it, so a killed preparation leaves nothing that looks finished. When several
    processes prepare at once, one rename wins and the others find the same data in place. Errors: those of download_and_prepare.
    """
    first = builder()
    if first.data_path.exists():
        return first
    try:
        download_and_prepare(first, data_dir)
    except Exception:  # whatever a builder raises
        if not builder().data_path.exists():
            raise
    return builder()  # a fresh one: `first` does not know what another process may have put in place


def read(builder: Any, split: str) -> list[dict[str, str]]:
    """The texts of a split, in their order. builder: ready. Errors: UserError."""
    try:
        source = builder.as_data_source(split)
        rows = source.__getitems__(range(len(source)))
    except Exception as error:  # the readers raise their own, undocumented types for damaged files
        raise UserError(f"data.data_dir: cannot read {builder.data_path}: {error}; remove that folder and it is prepared again") from error
    return [{key: text.decode() for key, text in row.items()} for row in rows]


def _fetch(source: storage.Place, target: pathlib.Path) -> None:
    """Whole or not at all; of several processes that fetch at once one is kept."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        storage.download(source, pathlib.Path(folder) / "data")
        try:
            (pathlib.Path(folder) / "data").rename(target)
        except OSError:
            if not target.exists():
                raise
