"""docs/own-data.md as a reader would follow it: its files are written, its commands run, in this process."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from lgrpo.__main__ import run

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.M | re.S)


@pytest.fixture
def blocks():
    return {title: body for _, title, body in BLOCK.findall(PAGE.read_text())}


def test_the_page_runs(blocks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = blocks.pop("run").splitlines()
    for title, body in blocks.items():
        Path(title).write_text(body)
    said = {}
    for line in commands:
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "lgrpo"]:
            assert run(words[3:]) == 0, line
        else:
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
        out = capsys.readouterr()
        said[words[3] if len(words) > 3 else words[1]] = out.out + out.err
    assert "24 records" in said["data"] and "0 by sft" in said["data"]
    assert "ok for `sft`" in said["check"] and "its target: <<1+1=2>></think>" in said["check"].replace(" ", "").replace(
        "itstarget:", "its target: "
    )
    assert "problems, split test: 8 of 24 problems" in said["eval"] and "answer: " in said["ask"]


def test_the_page_is_in_the_site():
    assert "own-data.md" in (PAGE.parents[1] / "mkdocs.yml").read_text()
