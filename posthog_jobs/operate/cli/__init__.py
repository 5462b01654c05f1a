"""The commands that `celery -A posthog_jobs` has besides Celery's own; they import little."""
