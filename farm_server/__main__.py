"""``python -m farm_server``."""

from farm_server.cli import main

main()
