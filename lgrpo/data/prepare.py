"""The one way in which a tensorflow-datasets builder is made to write its data, and where it writes it."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import tempfile
from typing import Any

from lgrpo.config import DataConfig
from lgrpo.runs import storage

_INFO = "dataset_info.json"  # without it a folder is no data set


def local_root(data_dir: str) -> pathlib.Path:
    """Folder in which tensorflow-datasets works: data.data_dir itself, or for one in a bucket, whose files its readers cannot open, a copy of it."""
    at = storage.place(data_dir)
    return pathlib.Path(DataConfig.data_dir).expanduser().parent / "buckets" / str(at).removeprefix("gs://") if storage.remote(at) else at


def download_and_prepare(builder: Any, data_dir: str) -> None:
    """Prepares quietly: tfds prints, but stdout belongs to the caller, and by default it would first ask its cloud bucket, which may hang
    without a network. What data.data_dir has in a bucket is fetched, what it lacks there is put there. builder: with local_root as its folder.

    Errors: whatever the builder raises; those of storage.errors().
    """
    here = pathlib.Path(builder.data_path)
    there = storage.place(data_dir) / here.relative_to(local_root(data_dir)) if storage.remote(data_dir) else None
    if there is not None and (there / _INFO).exists():
        _fetch(there, here)
        return
    import tensorflow_datasets as tfds  # here, because runs on JSON lines do not need it

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    if there is not None:
        storage.upload(here, there, last=_INFO)


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
