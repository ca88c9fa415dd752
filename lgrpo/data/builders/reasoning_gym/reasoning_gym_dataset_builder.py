"""Problems of the package reasoning-gym as a tensorflow-datasets builder, written and read without TensorFlow (ArrayRecord files)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from etils import epath

from lgrpo.config import GymConfig
from lgrpo.data import gym


class Builder(tfds.core.GeneratorBasedBuilder):
    """Text features `problem`, `cot` (empty where there is none), `answer` and `solution` (empty unless chains are equations); splits train, valid,
    test and, where templates are held out, held_out. info.metadata: what gym.write leaves in dataset.json.
    """

    code_path = epath.Path(__file__)  # see the builder of word_problems
    # Raise this with every change of what a problem becomes: prepared data of another version is not read.
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def __init__(self, *, settings: GymConfig, **kwargs: Any) -> None:
        self._settings = settings
        config = tfds.core.BuilderConfig(
            name=f"{settings.dataset}-{gym.digest(settings)}", description=f"{settings.dataset} of reasoning-gym"
        )
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"problem": text(), "cot": text(), "answer": text(), "solution": text()}),
            supervised_keys=None,
            disable_shuffling=True,  # uid is the position in the split
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        # All splits are made before the first is written: a problem of one must not stand in another.
        about, splits = gym.generate(self._settings)
        self.info.metadata.update(about)
        return {split: self._generate_examples(records) for split, records in splits.items()}

    def _generate_examples(self, records: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, str]]]:
        for index, record in enumerate(records):
            yield index, {key: record.get(key, "") for key in ("problem", "cot", "answer", "solution")}
