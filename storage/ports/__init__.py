"""What the farm needs of the world that keeps it, as three interfaces.

| port | what it keeps | implementations | held by |
| --- | --- | --- | --- |
| ``Ledger`` (``ledger.py``) | records, in transactions | ``storage.ledger`` (SQLite), ``storage.memory_ledger`` | ``tests/contract/test_ledger*.py`` |
| ``BlobStore`` (``blob_store.py``) | immutable bytes by digest | ``storage.blobs`` (a folder) | ``tests/contract/test_blobs.py`` |
| ``Bus`` (``bus.py``) | nothing: it wakes who waits | ``farm_server.control.in_process_bus`` | ``tests/contract/test_bus.py`` |

Each MUST in a docstring is held to every implementation by a test of that suite.
"""  # noqa: E501  # a table
