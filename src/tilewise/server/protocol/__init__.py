"""Types of the request bodies, by route. Which fields there are at all is said in `server/fields`."""
