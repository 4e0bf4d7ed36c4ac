"""`python -m tico_cli` is `tico`."""

from tico_cli import main

if __name__ == "__main__":
    main()
