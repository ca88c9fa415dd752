"""What a run leaves behind and needs around it: checkpoints, metrics, signals, several processes, Hugging Face folders."""
