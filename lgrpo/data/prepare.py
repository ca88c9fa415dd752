"""The one way in which a tensorflow-datasets builder is made to write its data."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


def download_and_prepare(builder: Any) -> None:
    """Prepares quietly: tfds prints, but stdout belongs to the caller, and by default it would first ask its cloud bucket, which may hang
    without a network. Errors: whatever the builder raises."""
    import tensorflow_datasets as tfds  # here, because runs on JSON lines do not need it

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
