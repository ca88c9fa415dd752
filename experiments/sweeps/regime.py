"""What the paper's regime differs in, one setting at a time around the base: peakedness of the mixtures, K, learning rate, updates per batch.

Peakedness is varied where RL sees it, by the temperature of the mixtures and the scale of the noise. Labels of another peakedness need other
starts: train them, and give their folder with --set train.init_from=.../seed{seed}/latent_sft.
Run: python -m lgrpo ablate experiments/demo/latent_grpo.py --grid regime --seeds 3 --workdir runs/ablate/regime
"""

GRID = {"base": {}}
GRID |= {f"tau_{value}": {"rollout.latent.tau": value} for value in (0.5, 2.0)}
GRID |= {f"noise_{value}": {"rollout.latent.noise_scale": value} for value in (0.5, 2.0)}
GRID |= {f"k_{value}": {"rollout.latent.k": value} for value in (2, 4, 16)}
GRID |= {f"lr_{value}": {"optim.lr": value} for value in (1e-4, 1e-3)}
GRID |= {f"updates_{value}": {"train.updates_per_step": value} for value in (2, 4)}
