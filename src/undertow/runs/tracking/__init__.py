"""Trackers: a run's config, figures of each round, result and report in TensorBoard, Weights & Biases or MLflow."""
