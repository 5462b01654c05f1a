"""Captures an event for each star that a repository on GitHub gets, the oldest first.

Each hour it goes on from the cursor that it has kept in storage, page by page. The cursor is kept
after each star. So none is lost, whatever ends a run, and one alone can be captured twice: that
whose cursor could not be kept any more.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx

from posthog_jobs import RetryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posthog_jobs import Meta

TOO_MANY_REQUESTS = 429

QUERY = """
query ($owner: String!, $name: String!, $after: String) {
  repository(owner: $owner, name: $name) {
    stargazers(first: 100, after: $after, orderBy: {field: STARRED_AT, direction: ASC}) {
      edges { cursor starredAt node { login databaseId url avatarUrl } }
      pageInfo { endCursor hasNextPage }
    }
  }
}
"""

metrics = {"stars": "sum"}


class GitHubError(Exception):
    """GitHub does not answer what it was asked, now or later."""


def setup_plugin(meta: Meta) -> None:
    """Check the config."""
    owner, _, name = meta.config["repository"].partition("/")
    if not owner or not name or "/" in name:
        raise ValueError("repository is not owner/name")


async def run_every_hour(meta: Meta) -> None:
    """Capture the stars that are new."""
    kept = f"cursor of {meta.config['repository']}"
    headers = {"authorization": f"Bearer {meta.config['token']}"}
    has_next_page = True
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        while has_next_page:
            page = await fetch(client, meta.config, after=await meta.storage.get(kept))
            for edge in page["edges"]:
                await meta.posthog.capture(meta.config["eventName"], properties(edge, meta.config))
                await meta.storage.set(kept, edge["cursor"])
                await meta.metrics.stars.increment()
            if page["pageInfo"]["endCursor"] is not None:  # a page may have stars that are hidden
                await meta.storage.set(kept, page["pageInfo"]["endCursor"])
            has_next_page = page["pageInfo"]["hasNextPage"]


def properties(edge: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a star. It happened when it was given, not when it is captured."""
    user = edge["node"]
    return {
        "timestamp": edge["starredAt"],
        "distinct_id": user["login"],
        "repository": config["repository"],
        "starred_at": edge["starredAt"],
        "user": user["login"],
        "user_id": user["databaseId"],
        "user_url": user["url"],
        "avatar": user["avatarUrl"],
    }


async def fetch(
    client: httpx.AsyncClient, config: Mapping[str, Any], *, after: str | None
) -> dict[str, Any]:
    """Return the page of stars after a cursor, the first one if that is None.

    Raises:
        RetryError: GitHub is busy or away, or was asked too often.
        GitHubError: it does not know the repository, or refuses the token.
    """
    owner, _, name = config["repository"].partition("/")
    question = {"query": QUERY, "variables": {"owner": owner, "name": name, "after": after}}
    try:
        response = await client.post(config["url"], json=question)
    except httpx.TransportError as error:  # timeouts are among them
        raise RetryError(f"no answer from GitHub: {type(error).__name__}") from error
    answer = f"GitHub answered {response.status_code}"
    if response.is_server_error:
        raise RetryError(answer)
    found: dict[str, Any] = response.json() if response.is_success else {"errors": True}
    if "errors" in found:
        # it says so with 200, 403 or 429, and the first two have other reasons, too
        if response.status_code == TOO_MANY_REQUESTS or "rate limit" in response.text.lower():
            raise RetryError(f"{answer}: too many requests", delay=seconds_until_reset(response))
        raise GitHubError(f"{answer}: {response.text[:200]}")
    page: dict[str, Any] = found["data"]["repository"]["stargazers"]
    return page


def seconds_until_reset(response: httpx.Response) -> float:
    """Return for how long GitHub wants not to be asked; where it does not say, a minute."""
    asked = response.headers.get("retry-after", "")
    if asked.isdecimal():
        return float(asked)
    reset = response.headers.get("x-ratelimit-reset", "")
    if reset.isdecimal() and response.headers.get("x-ratelimit-remaining") == "0":
        return max(0.0, float(reset) - time.time())
    return 60.0
