"""Train the reference models: `train_reference` is the whole of it."""

from .run import TRAININGS, load_training_config, train_reference

__all__ = ["TRAININGS", "load_training_config", "train_reference"]
