"""GGUF, the files of llama.cpp: a language model in one, its vision tower and projector in another (`mmproj`).

Their metadata become the small files of an ordinary checkpoint, in a folder of the cache (`folder.py`), and the
tensors are read where they lie (`tensors.py`).
"""
