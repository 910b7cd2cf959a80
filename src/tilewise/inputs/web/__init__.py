"""Media from the web: addresses that are checked, sockets that are let go of, downloads that end."""
