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
}
