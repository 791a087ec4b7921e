"""`python -m halfbyte` is the command line."""

from halfbyte.cli.main import main

if __name__ == "__main__":
    main()
