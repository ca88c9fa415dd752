"""Runs of several real processes on loopback, with the variables that a user sets on each host; a run that hangs is killed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import forks
from flags import flags

MAIN = Path(__file__).with_name("main.py")
ROOT = Path(__file__).parents[2]
EXPERIMENT = """
import sys
sys.path.insert(0, {tests!r})
from {module} import {function}
def get_config():
    return {function}({data!r})
"""


def config(data_dir):
    """A tiny run on four devices whose rewards have spread: see `lucky`."""
    from lgrpo.config import (
        AlgoConfig,
        CheckpointConfig,
        DataConfig,
        DynamicSamplingConfig,
        EvaluationConfig,
        ExperimentConfig,
        LatentConfig,
        LoggingConfig,
        MeshConfig,
        ModelConfig,
        OptimConfig,
        RolloutConfig,
        SftConfig,
        TrainConfig,
    )

    return ExperimentConfig(
        name="multihost",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32),
        data=DataConfig(difficulty="mini", data_dir=str(data_dir), max_prompt=32),
        rollout=RolloutConfig(group_size=4, max_new_tokens=6, latent=LatentConfig(k=4, max_latent=1)),
        algo=AlgoConfig(invalid="keep", dynamic=DynamicSamplingConfig(enabled=True, max_rounds=2)),
        sft=SftConfig(max_chain=16, max_answer=4, batch_size=16, stage="latent", compression=4, label_noise=0.5, heldout=16),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(num_steps=3, prompts_per_step=8),
        evaluation=EvaluationConfig(every=2, problems=8, batch=8, samples=2, bootstrap=20),
        checkpoint=CheckpointConfig(every=2),
        logging=LoggingConfig(tensorboard=False, progress=False, samples_every=2),
        mesh=MeshConfig(data=2, fsdp=2),
    )


def write_experiment(folder, data_dir, module="multihost.worlds", function="config"):
    """experiment.py, whose config is what a function of a test module makes of data_dir."""
    path = Path(folder) / "experiment.py"
    path.write_text(EXPERIMENT.format(tests=str(ROOT / "tests"), data=str(data_dir), module=module, function=function))
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(processes, *args, devices=4, interrupt="", program=MAIN, only=None, more=None):
    """The same command on `processes` processes that have `devices` CPU devices together. main.py explains `interrupt`.

    only: the numbers of those that are started; more: further arguments of some. main.py is forked, and no test of how processes end.
    """
    common = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUM", "JAX_COORD", "JAX_PROCESS"))}
    common["XLA_FLAGS"] = flags(devices // processes)
    common |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    common |= {"TEST_SIGNAL": interrupt} if interrupt else {}
    found = []
    for index in range(processes) if only is None else only:
        env = common | ({"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)} if processes > 1 else {})
        words = [str(program), *map(str, (*args, *(more or {}).get(index, ())))]
        command, where = forks.command(*words) if program == MAIN else ([sys.executable, *words], {})
        found.append(subprocess.Popen(command, env=env | where, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return found


def finish(found, timeout=240):
    """(exit codes, stdouts, stderrs) of processes; all are killed when they take longer or one of them fails to end."""
    try:
        texts = [p.communicate(timeout=timeout) for p in found]
        return [p.returncode for p in found], [t[0] for t in texts], [t[1] for t in texts]
    finally:
        for process in found:
            process.kill()


def run(processes, *args, code=0, **kw):
    """start and finish; all must end with `code`. Returns stdouts."""
    codes, out, err = finish(start(processes, *args, **kw))
    assert codes == [code] * processes, "\n\n".join(text[-3000:] for text in err)
    return out
