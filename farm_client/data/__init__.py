"""Data files to shards and back: readers that stream rows, the sharder, and the shard file format."""
