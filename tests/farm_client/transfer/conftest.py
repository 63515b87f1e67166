import httpx
import pytest
from starlette.applications import Starlette

from farm_client.transfer.bulk_transport import BulkTransport
from farm_client.transfer.carrier import Carrier
from protocol.retry import RetryPolicy
from tests.farm_client.scripted_blobs import ScriptedBlobs, serving

AT_ONCE = RetryPolicy(first_seconds=0.0, longest_seconds=0.0, tries=4)


@pytest.fixture
async def farm():
    farm = ScriptedBlobs()
    async with serving(Starlette(routes=farm.routes())) as farm.port:
        yield farm


@pytest.fixture
async def carrier(farm):
    base_url = f"http://127.0.0.1:{farm.port}"
    with httpx.Client(base_url=base_url, transport=BulkTransport()) as bulk:
        async with httpx.AsyncClient(base_url=base_url) as http:
            yield Carrier(http, bulk, AT_ONCE)
