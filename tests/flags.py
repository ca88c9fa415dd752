"""XLA's flags for the tests and for the processes that they start. Nothing here imports JAX.

Tiny models spend their time in the compiler: unoptimised code halves the suite, and loops written by LLVM alone, without the passes of MLIR before
it, halve what is left. One module for LLVM in place of up to 32, without its expensive passes, takes a fifth of the compiler's time. Numbers are
compared at the same tolerances.
"""

CHEAP = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_llvm_disable_expensive_passes=true",
)

LONG = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}
"""Compiler options of a program that draws many thousands of samples: unoptimised it would run six times as long. jax.jit(f, compiler_options=LONG)"""


def flags(devices=1):
    """Of a process with so many simulated devices."""
    return " ".join((f"--xla_force_host_platform_device_count={devices}", *CHEAP))
