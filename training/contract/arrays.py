"""The arrays that the contract speaks of, by what they hold; docstrings give their shapes."""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]  # states, actions, a policy's tensors
Float64Array = NDArray[np.float64]  # weights, predictions, scores
