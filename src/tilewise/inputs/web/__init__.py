"""Media from the web: addresses that are checked, sockets that can be cancelled, downloads that end."""
