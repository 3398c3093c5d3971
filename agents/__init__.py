"""Search algorithms, imported as `amc.agents`. They know Gymnasium environments, never the ones in
`amc.envs`.
"""

if __name__ != "amc.agents":
    raise ImportError(
        "import this package as amc.agents: another name would load every class twice"
    )
