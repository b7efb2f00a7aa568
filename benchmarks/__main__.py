"""Runs every benchmark and prints its table."""

from . import still_life


def main() -> None:
    still_life.main()


if __name__ == "__main__":
    main()
