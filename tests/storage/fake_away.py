"""tests/ablate/fake.py for a workdir in a bucket. Run: python fake_away.py train|eval EXPERIMENT --workdir W"""

import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (1, 2)]

from ablate import fake  # noqa: E402

from lgrpo.runs import storage  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    away, here = storage.place(sys.argv[4]), Path(folder) / "cell" / "seed"
    here.mkdir(parents=True)
    sys.argv[4] = str(here)
    fake.main()
    storage.upload(here, away)
    print("done")
