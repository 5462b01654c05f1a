"""The chaos run: real workers and a real server under faults, and an account of every job."""
