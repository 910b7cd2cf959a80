"""The machine around this process, or what a container leaves of it: no torch is needed to ask."""
