"""Services: servers in the background, by name. Plain files and processes; knows nothing of models or flags.

`record` keeps what is known of each service, and tells its process from another that got its number; `launch` starts a
service, waits until it answers, and asks it how it is.
"""
