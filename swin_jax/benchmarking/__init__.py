"""What computations cost: time and memory, measured, fitted and drawn."""
