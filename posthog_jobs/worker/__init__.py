"""What a Celery worker needs from us."""
