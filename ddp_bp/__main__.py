"""`python -m ddp_bp` is the command `ddp-bp`."""

from ddp_bp.cli.main import main

main()
