"""`python -m e2bench.train.reproduce`: the command of `e2bench.train.miniature.reproduce`."""

from e2bench.train.miniature.reproduce import main

if __name__ == "__main__":
    main()
