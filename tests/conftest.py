"""Eight simulated CPU devices for every test; set before anything imports JAX."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny models spend their time in the compiler: unoptimised code halves the suite. Numbers are compared at the same tolerances.
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
