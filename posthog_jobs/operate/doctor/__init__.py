"""What `celery -A posthog_jobs jobs doctor` looks at; each check finds one thing.

`examination` puts them together. A check that cannot look finds that, and raises nothing.
"""
