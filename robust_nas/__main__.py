"""`python -m robust_nas` is the same as `robust-nas`."""

from robust_nas.cli import main

if __name__ == "__main__":
    main()
