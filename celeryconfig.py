"""The configuration of `celery -A posthog_jobs …` in this folder: the example apps.

It sets no broker_url (such as "redis://localhost:6379/0"), so a private Redis is started, which
needs the extra `embedded` or a Redis server on PATH.
"""

from __future__ import annotations

import os

posthog_jobs_apps = {
    "teapot": {
        "module": "examples.teapot",
        "config": {
            "url": os.environ.get("TEAPOT_URL", "http://127.0.0.1:8418/"),
            "every": float(os.environ.get("TEAPOT_EVERY", "30")),
        },
    },
    "export": {
        "module": "examples.retry_export",
        "config": {"url": os.environ.get("EXPORT_URL", "http://127.0.0.1:8419/events")},
        "enabled": "EXPORT_URL" in os.environ,
    },
    "webhooks": {
        "module": "examples.webhooks",
        "config": {
            "url": os.environ.get("WEBHOOKS_URL", "http://127.0.0.1:8420/"),
            "secret": os.environ.get("WEBHOOKS_SECRET", "bm90IGEgc2VjcmV0"),
        },
        "enabled": "WEBHOOKS_URL" in os.environ,
    },
    "batches": {
        "module": "examples.batch_export",
        "config": {"url": os.environ.get("BATCHES_URL", "http://127.0.0.1:8421/")},
        "enabled": "BATCHES_URL" in os.environ,
    },
    "stars": {
        "module": "examples.github_stars",
        "config": {
            "repository": os.environ.get("STARS_REPOSITORY", "PostHog/posthog"),
            "token": os.environ.get("STARS_TOKEN", "none"),
        },
        "enabled": "STARS_TOKEN" in os.environ,
    },
}
