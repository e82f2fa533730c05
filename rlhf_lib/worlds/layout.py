"""How a post becomes the query that a policy continues: one layout for every world, that of the TL;DR dataset."""

from __future__ import annotations

QUERY_END = "\n\nTL;DR:"


def query(*, subreddit: str, title: str, post: str) -> str:
    """The post behind its headings, and no space after the last colon: the summary brings its own.

    source  Huang et al. 2024
    """
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}{QUERY_END}"


def title(query: str) -> str:
    """The title in a query; nothing if it has none."""
    return query.partition("\n\nTITLE: ")[2].partition("\n\nPOST: ")[0]
