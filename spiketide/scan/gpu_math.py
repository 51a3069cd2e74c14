"""Stand-ins for CUDA's math library in Triton's interpreter, where there is none.

Compiled kernels call ``libdevice``, the library behind torch's own element-wise kernels. The interpreter keeps a block's values
in a NumPy array; here torch's functions are applied to it, so a kernel run by the interpreter has the torch reference's bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _stand_in(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def call(*operands: Any) -> Any:
        from triton.language import tensor
        from triton.runtime.interpreter import TensorHandle

        data = function(*(torch.from_numpy(np.array(o.handle.data)) for o in operands)).numpy()
        return tensor(TensorHandle(data, operands[0].handle.dtype), operands[0].type)

    return call


exp = _stand_in(torch.exp)
log = _stand_in(torch.log)
sin = _stand_in(torch.sin)
cos = _stand_in(torch.cos)
tanh = _stand_in(torch.tanh)
atan = _stand_in(torch.atan)
erf = _stand_in(torch.erf)
pow = _stand_in(torch.pow)
