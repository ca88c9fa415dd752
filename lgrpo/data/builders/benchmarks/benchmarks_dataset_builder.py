"""The registered data sets as one tensorflow-datasets builder with a config each, written and read without TensorFlow (ArrayRecord files)."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import requests
import tensorflow_datasets as tfds
from etils import epath

from lgrpo.data.registry import DATA_SETS, Fields
from lgrpo.data.rows import read_split


class Builder(tfds.core.GeneratorBasedBuilder):
    """Text features `problem`, `cot` (empty where there is none) and `answer`; splits and sources as in the registry."""

    code_path = epath.Path(__file__)  # see the builder of word_problems
    # Raise this with every change of a conversion: prepared data of another version is not read.
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=name, description=f"{known.homepage}; license: {known.license}") for name, known in DATA_SETS.items()
    ]

    def __init__(self, *, files: Mapping[str, pathlib.Path], **kwargs: Any) -> None:
        """files: split -> local file; empty: the public source is downloaded."""
        self._files = dict(files)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        known = DATA_SETS[self.builder_config.name]
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"problem": text(), "cot": text(), "answer": text()}),
            supervised_keys=None,
            disable_shuffling=True,  # uid is the position in the file
            homepage=known.homepage,
            license=known.license,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        name = self.builder_config.name
        local = {split: ([file], [file.suffix]) for split, file in self._files.items()}
        found = local or self._downloaded(dl_manager)
        # All splits are read and checked before the first is written.
        records = {split: read_split(name, split, *source) for split, source in found.items()}
        return {split: self._generate_examples(rows) for split, rows in records.items()}

    def _downloaded(self, dl_manager: tfds.download.DownloadManager) -> dict[str, tuple[list[pathlib.Path], list[str]]]:
        """(files, kinds of file) by split, from the first place that can be read. Errors: those of the first place, where none can."""
        known = DATA_SETS[self.builder_config.name]
        first: Exception | None = None
        for place in ({split: part.urls for split, part in known.splits.items()}, *(mirror.urls for mirror in known.mirrors)):
            urls = {split: list(place[split]) for split in known.splits}
            try:
                # tfds would retry for minutes where there is no network
                requests.head(next(iter(urls.values()))[0], timeout=20, allow_redirects=True)
                paths = dl_manager.download(urls)
            except Exception as error:  # the network's, with no common base
                first = first or error
                continue
            return {s: ([pathlib.Path(p) for p in paths[s]], [pathlib.PurePosixPath(u).suffix for u in urls[s]]) for s in urls}
        assert first is not None
        raise first

    def _generate_examples(self, records: list[Fields]) -> Iterator[tuple[int, Fields]]:
        yield from enumerate(records)
