"""`python -m busi_tune` is the command line."""

from busi_tune.cli import main

if __name__ == "__main__":
    main()
