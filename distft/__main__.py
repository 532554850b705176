"""``python -m distft``: the command line."""

from distft.cli.main import main

if __name__ == "__main__":
    main()
