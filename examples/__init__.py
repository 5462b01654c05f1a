"""Apps to read, and a demo that runs one of them: `python -m examples.demo`."""
