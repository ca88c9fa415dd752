"""A process of a run that only saves and restores. Run by test_processes.py with a folder in a bucket."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[n]) for n in (1, 2)]


def main(folder):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from states import CFG, KEEP, make_state

    from lgrpo.config import MeshConfig
    from lgrpo.runs import multihost
    from lgrpo.runs.checkpoint import Checkpoints
    from lgrpo.runs.lock import Lock
    from lgrpo.runs.storage import place, write_text
    from lgrpo.sharding import make_mesh

    multihost.initialize(100.0)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2))
    rows = jax.NamedSharding(mesh, jax.P("fsdp"))
    everywhere = jax.NamedSharding(mesh, jax.P())

    def spread(step):
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x), rows if jnp.ndim(x) else everywhere), make_state(step))

    lock = Lock(folder)
    ckpt = Checkpoints(folder, KEEP)
    for step in (3, 6):
        ckpt.save(step, state=spread(step), data={}, buffer=None, cfg=CFG, extra={}, metric=None)
    ckpt.close()
    if multihost.is_main():
        write_text(place(folder) / "checkpoints" / "6" / "meta" / "metadata", "damage")
    multihost.barrier("damaged")
    ckpt = Checkpoints(folder, KEEP)  # as a restart: Orbax reads nothing back from a bucket through what wrote it
    found = ckpt.restore(spread(0), None, CFG)
    for mine, theirs in zip(jax.tree.leaves(found.state), jax.tree.leaves(spread(3)), strict=True):
        assert all(np.array_equal(a.data, b.data) for a, b in zip(mine.addressable_shards, theirs.addressable_shards, strict=True))
    ckpt.close()
    lock.release()
    print(f"restored {found.step}")


if __name__ == "__main__":
    main(sys.argv[1])
