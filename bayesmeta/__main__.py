"""`python -m bayesmeta` is the command line."""

from bayesmeta.cli import main

main()
