"""What hooks are called with, and when: events, exports, ticks."""
