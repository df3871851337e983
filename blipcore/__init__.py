"""BLIP and its trainer: model, tasks, data stream, training loop."""
