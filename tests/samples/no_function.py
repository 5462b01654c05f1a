"""An app whose job is no function."""

jobs = {"later": "in a while"}
