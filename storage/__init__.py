"""How facts survive: the ledger, content-addressed blobs, checkpoints, migrations."""
