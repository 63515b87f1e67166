"""`python -m farm_client` is `farm-client`."""

from farm_client.agent.cli import main

main()
