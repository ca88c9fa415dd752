"""Latent-SFT from an explicit model: stage 1 (encoder, decoder, union), labels, stage 2. One module per setting, one per phase of the default one.

python -m lgrpo sft experiments/demo/explicit_sft.py --data.train-split train --workdir runs/demo/explicit_sft
python -m lgrpo sft experiments/latent_sft/equations_7.py --stage all --workdir runs/latent_sft/equations_7
"""
