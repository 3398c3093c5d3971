"""Gymnasium environments, imported as `amc.envs`. Importing it registers ``amc/Compression-v0``."""

if __name__ != "amc.envs":
    raise ImportError("import this package as amc.envs: another name would load every class twice")

import gymnasium

ENV_ID = "amc/Compression-v0"

gymnasium.register(id=ENV_ID, entry_point="amc.envs.compression:CompressionEnv")
