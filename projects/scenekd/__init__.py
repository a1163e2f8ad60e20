"""SceneKD: train compact scene-understanding students from partial labels and soft teachers."""

__version__ = "0.1.0"
