"""``python -m amc``."""

from amc.cli import main

if __name__ == "__main__":
    main()
