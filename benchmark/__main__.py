"""`python -m cilbench`."""

from cilbench.cli.main import main

if __name__ == "__main__":
    main()
