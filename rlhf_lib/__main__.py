"""`python -m rlhf_lib`."""

from .cli import main

main()
