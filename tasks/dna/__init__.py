"""Design of regulatory DNA."""
