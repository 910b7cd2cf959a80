"""Pictures and videos on their way in: fetched within limits, decoded, cut into tiles."""
