"""The broker: what waits there, what failed, and how messages get there."""
