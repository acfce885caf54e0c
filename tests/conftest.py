import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # `import helpers` under any of pytest's import modes
torch.set_num_threads(1)  # the nets are small: on a busy machine threads that wait for each other cost four times more
