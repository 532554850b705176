"""``python -m distft``: the command line."""

from distft.cli import main

if __name__ == "__main__":
    main()
