"""Training: options, the compiled step, the loop, and what decides when to stop and what to keep."""
