"""``python -m amc.cli``, for torchrun."""

from amc.cli import main

if __name__ == "__main__":
    main()
