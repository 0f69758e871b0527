"""`python -m penchant` is the command line."""

from penchant.cli.main import main

main()
