"""`python -m e2bench`, which launchers of several processes need."""

from e2bench.cli.entry import main

if __name__ == "__main__":
    main()
