"""The whole farm under a simulated clock and network, with seeded faults (docs/simulation.md)."""
