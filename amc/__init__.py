"""amc: AutoML model compression by reinforcement learning (He et al., ECCV 2018)."""

__version__ = "0.1.0"
