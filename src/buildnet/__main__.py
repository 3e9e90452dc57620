"""`python -m buildnet` is the command line, wherever the `buildnet` script is not on the path."""

from buildnet.cli.main import main

if __name__ == "__main__":
    main()
