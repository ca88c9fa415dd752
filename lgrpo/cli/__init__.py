"""One module per command: WHAT (a line for the usage), add_options(parser), run(...). lgrpo/__main__.py chooses among them.

Commands on an experiment have `run(options, cfg, remake)`; the others have `run(options)`. Imports of JAX and of the loops are inside the
functions: --help and a mistyped option answer at once.
"""
