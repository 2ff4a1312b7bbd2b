"""`python -m bayesmeta` is the command line, and `torchrun -m bayesmeta` in several processes."""

from bayesmeta.launch import main

main()
