"""A task as people see it while it trains: moments of it, and how they are drawn, on a terminal or in a notebook."""
