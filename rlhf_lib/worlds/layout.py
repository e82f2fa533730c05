"""How a post becomes the query that a policy continues: one layout for every world, that of the TL;DR dataset."""

from __future__ import annotations


def query(*, subreddit: str, title: str, post: str) -> str:
    """The post behind its headings, and no space after the last colon: the summary brings its own.

    source  Huang et al. 2024
    """
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
