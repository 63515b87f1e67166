"""What stands before the application: connections, request heads and upgrades, bounded before any token is checked."""
