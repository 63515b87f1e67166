"""An agent in a process of its own, with fake executors: for tests that kill it. Arguments: address, home."""

import asyncio
import sys
from pathlib import Path

from farm_client.agent.connection.address import parse_address
from farm_client.agent.daemon import Agent
from farm_client.agent.settings import load_settings
from tests.injection.client import BreakableParts
from tests.injection.places import Places


def main():
    address, home = sys.argv[1:]
    settings = load_settings(home=Path(home), name="tester", drain_seconds=1.0)
    wrap = BreakableParts(Places.planned())
    asyncio.run(Agent(parse_address(address), settings, "tests.farm_client.agent.fake_executor", wrap=wrap).run())


if __name__ == "__main__":
    main()
