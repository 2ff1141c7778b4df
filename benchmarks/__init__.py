"""What MMS costs, beside what it is built on: `python -m benchmarks`."""
