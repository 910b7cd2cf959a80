"""One thread for the whole suite: models this small are all overhead on several, most of all on a busy machine."""

import torch

torch.set_num_threads(1)
