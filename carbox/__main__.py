"""`python -m carbox` is the command `carbox`."""

from carbox.cli import main

if __name__ == "__main__":
    main()
