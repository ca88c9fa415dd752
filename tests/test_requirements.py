"""Files that name versions agree: the lock with the ranges, the extras with the files for development."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def ranges(name):
    """Package -> requirement of a file and of the files that it includes."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found |= ranges(line[3:])
        elif line:
            asked = Requirement(line)
            found[asked.name.lower().replace("_", "-")] = asked
    return found


def test_the_lock_is_a_choice_from_the_ranges_and_names_no_host():
    text = (ROOT / "requirements.lock").read_text()
    pins = {asked.name: asked for asked in map(Requirement, (x for x in text.splitlines() if not x.startswith("#")))}
    asked = ranges("requirements-dev.txt")
    assert asked.keys() <= pins.keys(), "run make lock"
    for name, one in asked.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and one.specifier.contains(pin.version), f"{one}: {pins[name]} is locked; run make lock"
    assert "://" not in text


def test_extras_ask_for_what_is_tested():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    tested = ranges("requirements-dev.txt") | ranges("requirements-smollm2.txt")
    asked = {one.name: one for group in extras.values() for one in map(Requirement, group) if not one.extras}
    assert {name: str(one.specifier) for name, one in asked.items()} == {name: str(tested[name].specifier) for name in asked}
    jax = tested["jax"].specifier
    assert all(one.specifier == jax for group in ("tpu", "cuda") for one in map(Requirement, extras[group]))
