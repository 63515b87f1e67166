"""The daemon: sockets, REST, auth, folding threads, status page; it carries out the coordinator's commands."""
