"""Where texts come from and who judges them. Nothing here knows which algorithm runs."""
