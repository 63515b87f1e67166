"""A fake executor that gets warm when a test writes to the FIFO beside the folder of executors' folders."""

from pathlib import Path

from tests.farm_client.agent.fake_executor import main

if __name__ == "__main__":
    Path("../../../warm").read_bytes()
    main()
