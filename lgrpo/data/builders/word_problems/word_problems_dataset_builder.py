"""The embedded task as a tensorflow-datasets builder, written and read without TensorFlow (ArrayRecord files)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds
from etils import epath

from lgrpo.data import word_problems


class Builder(tfds.core.GeneratorBasedBuilder):
    """Word problems: text features `problem`, `cot` and `answer`; splits train, valid and test."""

    # tfds 4.9.10 works this path out with importlib_resources, which it does not declare for current Pythons.
    code_path = epath.Path(__file__)
    # Raise this with every change of the generator: prepared data of another version is not read.
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=name, description=f"{level.ops[0]} to {level.ops[1]} operations, quantities in 0..{level.high}")
        for name, level in word_problems.DIFFICULTIES.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"problem": text(), "cot": text(), "answer": text()}),
            supervised_keys=None,
            disable_shuffling=True,  # position = index of the generator; the training pipeline shuffles
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        sizes = word_problems.level_of(self.builder_config.name).sizes
        return {split: self._generate_examples(split, count) for split, count in sizes.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, str]]]:
        for index in range(count):
            yield index, word_problems.generate(self.builder_config.name, split, index)
