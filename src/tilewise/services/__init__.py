"""Services: servers in the background, by name. Plain files and processes; knows nothing of models or flags.

`process` tells a process from another that got its number, `record` keeps what is known of each service, `health` asks
a server how it is, and `launch` starts one and waits for it.
"""
