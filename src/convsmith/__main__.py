"""`python -m convsmith` is `convsmith`."""

from convsmith.cli import run

if __name__ == "__main__":
    run()
