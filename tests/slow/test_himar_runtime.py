"""All golden generations of Hi-MAR by the runtime on ONNX Runtime, the one of real size too.

    python -m pytest tests/slow/test_himar_runtime.py --slow --himar-golden-dir DIR

DIR holds the golden files of Hi-MAR.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.pipeline import Pipeline
from tests.himar_checkpoints import make_himar_bundle
from tests.himar_golden import HiMARCase
from tests.parity.test_himar_pipeline import regenerated

pytestmark = pytest.mark.slow
TRACES = {
    "tiny_a": tuple(
        f"tiny_a.{name}"
        for name in (
            *("nocfg", "linear", "constant", "iter1", "iter12"),
            *("only_cfg", "only_re_cfg", "unlabelled"),
        )
    ),
    "narrow": ("narrow.long", "narrow.published"),
    "himar_base": ("base.trace",),
}
"""By case that bundles are exported of."""
ARRAYS = (
    *("orders", "p1.mask", "p1.tokens", "p2.mask", "p2.tokens", "small_tokens", "dense_tokens"),
    *("image", "small_image_64"),
)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--himar-golden-dir")
    if folder is None:
        pytest.skip("give the folder of Hi-MAR's golden traces: --himar-golden-dir DIR")
    return folder


@pytest.mark.parametrize("case_name", TRACES)
def test_golden_generations(folder: Path, tmp_path: Path, case_name: str) -> None:
    with Pipeline.load(make_himar_bundle(tmp_path, case_name), "ort-cpu") as pipeline:
        for name in TRACES[case_name]:
            case = HiMARCase(name, folder)
            ours = regenerated(pipeline, case)
            for array in ARRAYS:
                if array in case.arrays or f"{array}.probe" in case.arrays:
                    case.check(array, ours[array])
            if "image.crop" in case.arrays:
                case.check("image.crop", ours["image"][:, :, 96:128, 96:128])
