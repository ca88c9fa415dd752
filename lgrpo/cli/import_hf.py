"""The command `import-hf`."""

from __future__ import annotations

import argparse

from lgrpo.cli.common import add_dtype
from lgrpo.runs.storage import place

WHAT = "a Hugging Face folder, repo id or GGUF file as checkpoint 0 of a new workdir"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder with config.json and safetensors, a .gguf file, or a repo id to download")
    parser.add_argument("--workdir", type=place, required=True, help="new workdir; the tokenizer goes into its folder hf/")
    parser.add_argument("--revision", help="branch, tag or commit of a repo")
    what = "tokens beyond the model's rows: an error, left out of the tokenizer, or given new rows"
    parser.add_argument("--extra-tokens", choices=("refuse", "drop", "pad"), default="refuse", help=what)
    what = "texts that become tokens of their own, such as '<think>' '</think>', each with a row of the tables"
    parser.add_argument("--add-tokens", nargs="+", default=[], metavar="TEXT", help=what)
    parser.add_argument("--fsdp", type=int, default=-1, help="devices that share the weights; -1: all that --tensor leaves")
    parser.add_argument("--tensor", type=int, default=1, help="devices that share heads, feed-forward and vocabulary")
    add_dtype(parser)


def run(options: argparse.Namespace) -> int:
    from lgrpo.config import MeshConfig
    from lgrpo.runs import convert, multihost

    multihost.initialize()
    mesh = MeshConfig(data=1, fsdp=options.fsdp, tensor=options.tensor)
    how = {"revision": options.revision, "dtype": options.dtype, "extra_tokens": options.extra_tokens, "add": options.add_tokens}
    cfg = convert.import_hf(options.source, options.workdir, mesh=mesh, **how)
    print(convert.describe_import(cfg, options.workdir))
    return 0
