"""Where the numbers of a run go: metrics.jsonl is the record, TensorBoard, Weights & Biases and trackio are copies of it."""
