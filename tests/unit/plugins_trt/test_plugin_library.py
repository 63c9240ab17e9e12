"""The built plugin library, without a GPU: its class, its exports, its kernels, its choice."""

from __future__ import annotations

import ctypes
import itertools
import json
import random
import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch

from plugins_trt.ahead_of_time import ARCHITECTURES
from plugins_trt.block_sparse_attn.launcher import Launcher, Params
from plugins_trt.block_sparse_attn.variants import (
    DTYPES,
    HEAD_DIMS,
    Norm,
    Variant,
    choose_tile,
    tiles,
)
from runtime.backends.kernel_library import C_TYPES, Part
from tests.plugin_build import ROOT, PluginBuild

TEST_SOURCE = Path(__file__).with_name("plugin_test.cpp")
PARTS = get_args(Part)
CASES = re.findall(r"^CASE\((\w+)\)", TEST_SOURCE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def launcher(plugin_build: PluginBuild) -> Launcher:
    return Launcher(plugin_build.library)


@pytest.mark.parametrize("case", CASES)
def test_plugin_class(case: str, plugin_build: PluginBuild) -> None:
    build = plugin_build
    done = subprocess.run(
        [build.test_program, build.library, build.fake_nvinfer, case],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_exports_and_needs(plugin_build: PluginBuild) -> None:
    def symbols(*options: str) -> list[str]:
        command = ["nm", "-D", *options, plugin_build.library]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )

    exported = {line.split()[-1] for line in symbols("--defined-only") if line}
    assert exported == {
        *("getCreators", "setLoggerFinder"),
        *("bsa_architectures", "bsa_check", "bsa_kernel_name", "bsa_launch", "bsa_version"),
        "bsa_workspace_bytes",
        *(f"hmar_{part}_{what}" for part in PARTS for what in ("image", "table")),
    }
    needed = {line.split()[-1].split("@")[0] for line in symbols("--undefined-only") if line}
    foreign = re.compile("cuda|cu[A-Z]|.*nvinfer|getLogger|getPluginRegistry")
    assert not {name for name in needed if foreign.match(name)}
    libraries = subprocess.run(
        ["readelf", "-d", plugin_build.library], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r"NEEDED.*(cuda|nvinfer|tensorrt)", libraries)


@pytest.mark.parametrize("part", PARTS)
def test_tables_of_kernels_that_the_runtime_launches(part: str, plugin_build: PluginBuild) -> None:
    table = getattr(ctypes.CDLL(str(plugin_build.library)), f"hmar_{part}_table")
    table.restype = ctypes.c_char_p
    tables = json.loads(table())
    assert tuple(map(int, tables)) == (ARCHITECTURES if part == "sampling" else (90,))
    for entry in (entry for kernels in tables.values() for entry in kernels.values()):
        assert (
            set(entry["parameters"].values()) <= {*C_TYPES, "tensor_map"}
            and entry["threads"] % 32 == 0
        )


def test_holds_no_path_of_the_build_machine(plugin_build: PluginBuild) -> None:
    for file in (plugin_build.library, plugin_build.fatbin, plugin_build.header):
        data = file.read_bytes()
        for path in (ROOT, Path.home(), plugin_build.folder):
            assert str(path).encode() not in data, f"{file.name}: {path}"


def test_version_is_the_packages(launcher: Launcher) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{launcher.version}"\n' in project
    assert launcher.architectures == ARCHITECTURES


def test_fatbinary_holds_every_kernel_for_every_architecture(plugin_build: PluginBuild) -> None:
    from triton import knobs

    from plugins_trt.block_sparse_attn.units import all_units

    listing = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "-symbols", plugin_build.fatbin],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    images = re.split(r"^arch = sm_", listing, flags=re.MULTILINE)[1:]
    held = {image.split()[0]: set(re.findall(r"STO_ENTRY\s+(\w+)", image)) for image in images}
    names = {unit.name for unit in all_units()}
    assert held == {str(a).replace("90", "90a"): names for a in ARCHITECTURES}


@pytest.mark.parametrize("dtype", DTYPES)
def test_launcher_takes_the_tile_that_python_takes(launcher: Launcher, dtype: str) -> None:
    rng = random.Random(0)
    for head_dim, norm, _ in itertools.product(HEAD_DIMS, (False, True), range(200)):
        length = int(2 ** rng.uniform(0, 13))
        call = {
            "batch": rng.choice((1, 2, 3, 8, 64)),
            "length": length,
            "heads": rng.choice((1, 4, 16, 30)),
            "num_blocks": rng.choice((1, 2, 10, max(1, length // 4), length + 5)),
        }
        tile = choose_tile(dtype, head_dim, **call)
        variant = Variant(dtype=dtype, head_dim=head_dim, qk_l2_norm=norm, tile=tile)
        params = Params(
            **call, head_dim=head_dim, dtype=DTYPES.index(dtype), scale_mul=1 if norm else None
        )
        assert launcher.kernel_name(params, rng.choice(ARCHITECTURES)) == variant.name


def test_workspace_holds_the_keys_where_they_are_normalised_beforehand(launcher: Launcher) -> None:
    for dtype, head_dim, norm in itertools.product(DTYPES, HEAD_DIMS, (False, True)):
        beforehand = any(t.norm(norm) is Norm.BEFOREHAND for t in tiles(dtype, head_dim))
        k = torch.empty(2, 30, 3, head_dim, dtype=getattr(torch, dtype))
        expected = k.nbytes if beforehand else 0
        assert launcher.workspace_bytes(k.dtype, norm, k.shape) == expected


@pytest.mark.parametrize(
    ("compute_capability", "has_kernels"),
    [(75, False), (80, True), (87, True), (89, True), (90, True), (100, False), (121, True)],
)
def test_gpus_that_the_kernels_run_on(
    launcher: Launcher, compute_capability: int, has_kernels: bool
) -> None:
    params = Params(batch=1, length=9, heads=4, head_dim=64, num_blocks=1, dtype=1)
    assert (launcher.kernel_name(params, compute_capability) is not None) == has_kernels
