"""Runs an FP32 network in onnxruntime, for `visq bench`. It needs the extra `onnx`, so import it late.

Our two operators become ONNX's own: the scan is a `Scan` over the tokens, the causal convolution a padded `Conv`.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from visq.errors import VisqError

try:
    import onnxruntime
    from onnxscript import FLOAT, graph, script
    from onnxscript import opset18 as op
except ImportError as error:
    raise VisqError(f"onnxruntime needs an extra: pip install 'visq[onnx]' ({error})") from error


@script()
def _selective_scan(u: FLOAT, delta: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> FLOAT:
    """`visq.ops.selective_scan`. Factors and inputs of all steps are computed before the loop and y after it: inside,
    each node costs more than its arithmetic."""
    u = op.Transpose(u, perm=[1, 0, 2])
    delta = op.Transpose(delta, perm=[1, 0, 2])
    B = op.Transpose(B, perm=[1, 0, 2])
    C = op.Transpose(C, perm=[1, 0, 2])
    abar = op.Exp(op.Unsqueeze(delta, [-1]) * A)
    drive = op.Unsqueeze(delta * u, [-1]) * op.Unsqueeze(B, [2])

    @graph()
    def step(h, abar_t, drive_t):  # type: ignore[no-untyped-def]
        after = abar_t * h + drive_t
        state = op.Identity(after)
        return after, state

    zeros = op.ConstantOfShape(op.Shape(drive, start=1))
    _last, states = op.Scan(zeros, abar, drive, body=step, num_scan_inputs=2)
    y = op.Squeeze(op.MatMul(states, op.Unsqueeze(C, [-1])), [-1])
    return op.Transpose(y, perm=[1, 0, 2])


def _causal_conv1d(x: Any, weight: Any, bias: Any = None) -> Any:
    """`visq.ops.causal_conv1d`."""
    channels, taps = weight.shape
    maps = op.Transpose(x, perm=[0, 2, 1])
    y = op.Conv(maps, op.Unsqueeze(weight, [1]), bias, group=channels, pads=[taps - 1, 0])
    return op.Transpose(y, perm=[0, 2, 1])


class OnnxNetwork:
    """A network exported to ONNX with a free batch size, run by onnxruntime on the processor.

    Arguments:
        network: an FP32 model in eval mode, nothing quantized.
        images: an example, float32 [batch, channels, size, size]; its values and its batch size do not matter.
        threads: threads of an operator; operators run one after the other.

    Raises:
        VisqError: the network cannot be exported, or onnxruntime does not take it; with the first line of the reason.
    """

    def __init__(self, network: torch.nn.Module, images: np.ndarray, threads: int) -> None:
        # Two images: an exporter takes a size of one for a constant.
        example = torch.from_numpy(np.resize(images, (2, *images.shape[1:])))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads may spin within a run only. After it they would take processors from the next contender.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            with torch.no_grad(), _quietly():
                program = torch.onnx.export(
                    network,
                    (example,),
                    dynamo=True,
                    verbose=False,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    custom_translation_table={
                        torch.ops.visq.selective_scan.default: _selective_scan,
                        torch.ops.visq.causal_conv1d.default: _causal_conv1d,
                    },
                )
            assert program is not None
            content = program.model_proto.SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever exporter and runtime throw
            cause = error.__cause__ or error
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            raise VisqError(f"the network cannot be exported to ONNX: {lines[0]}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the network's output, float32, of images [batch, channels, size, size] float32."""
        output: np.ndarray = self._session.run(None, {self._input: images})[0]
        return output


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silences the exporter's remarks on missing packages and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
