"""PostHog's jobs API for Python apps, on Celery."""
