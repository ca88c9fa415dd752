"""The command `ablate`: works on an experiment, but its runs are processes of their own."""

from __future__ import annotations

import argparse
import shlex
import sys

from lgrpo.errors import UserError
from lgrpo.runs.storage import place, remote, resolved

WHAT = "a grid of settings times seeds and one table: python -m lgrpo ablate EXPERIMENT --grid stabilizers --seeds 3 --workdir DIR"


def add_options(parser: argparse.ArgumentParser) -> None:
    """All options of `ablate`."""
    parser.add_argument("experiment", type=place, metavar="EXPERIMENT", help="file of the experiment that the cells change")
    parser.add_argument("--grid", required=True, metavar="FILE_OR_NAME", help="grid: a Python file, or a name in experiments/sweeps")
    parser.add_argument("--seeds", default="3", help="how many (3: 0, 1 and 2), or which (0,4; a single one as 4,); default: 3")
    parser.add_argument("--workdir", type=place, required=True, help="folder for the runs, WORKDIR/CELL/seedS, and for the table")
    parser.add_argument("--jobs", type=int, default=0, help="runs at once, each with its share of the cores; default: as many as cores")
    parser.add_argument("--hosts", default="", help="machines to use instead, through ssh: a,b; --jobs is then per host, default 1")
    parser.add_argument("--base", default="", help="cell that the others are compared with; default: the grid's own")
    parser.add_argument("--cells", default="", help="only these cells of the grid: a,b; the base is always among them")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    text = "a setting of the base, before the cells' own, e.g. --set train.num_steps=50 optim.lr=1e-4"
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help=text)


def run(options: argparse.Namespace) -> int:
    """Runs what is missing and writes the table of all that is there. Exit code: 0, 1 when runs failed, 75 when some are to be gone on with.

    Errors: UserError for mistakes in the options, the grid or a cell, before anything starts.
    """
    from lgrpo.ablate.grid import find_grid, load_grid, parse_seeds, parse_set, plan
    from lgrpo.ablate.jobs import STEPS, command, read_times
    from lgrpo.ablate.run import make_slots, own_cores, run_jobs
    from lgrpo.ablate.table import write_table
    from lgrpo.runs.multihost import require_alone

    require_alone("ablate")
    grid = load_grid(find_grid(options.grid, options.experiment), options.base)
    if options.jobs < 0:
        raise UserError(f"--jobs {options.jobs}: must be at least 1, or 0 for all cores")
    if options.cells:
        grid = grid.only([name.strip() for name in options.cells.split(",") if name.strip()])
    seeds = parse_seeds(options.seeds)
    workdir = resolved(options.workdir)
    hosts = [host.strip() for host in options.hosts.split(",") if host.strip()]
    if hosts and remote(workdir):
        raise UserError(
            "--hosts: the machines would need the experiments' files, which a bucket does not give them; run ablate on each of them, with --cells"
        )
    todo = plan(options.experiment, grid, seeds, parse_set(options.set), workdir)
    cores, runs = own_cores(), max(len(todo), 1)  # never more runs at once than there are
    slots = make_slots(options.jobs, hosts, cores)[:runs] if options.jobs or hosts else make_slots(min(len(cores), runs), (), cores)
    if options.dry_run:
        print(f"{len(todo)} runs: {len(grid.cells)} cells, seeds {', '.join(map(str, seeds))}; on {'; '.join(map(str, slots))}")
        print("\n".join(shlex.join(command(job, step)) for job in todo for step in STEPS))
        return 0
    outcome = run_jobs(todo, slots, workdir)
    print(write_table(grid, todo, workdir))
    print(f"written to {workdir / 'ablation'}.md, .csv and .json")
    seconds = [sum(t.get("cpu_s", 0.0) for t in read_times(job).values()) for job in todo]
    if any(seconds):
        print(f"CPU time: {sum(seconds):.0f} s in all, {max(seconds):.0f} s for the longest run", file=sys.stderr)
    for name, why in outcome.failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if outcome.interrupted:
        print(f"{len(outcome.interrupted)} runs are not finished; run the same command again to go on", file=sys.stderr)
    return outcome.code
