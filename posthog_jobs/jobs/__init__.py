"""A job: what an app exports, how it is triggered, and how it is run."""
