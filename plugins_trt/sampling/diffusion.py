"""Reverse diffusion as Triton kernels: the rule of `runtime.denoising`, with its normal numbers.

`start_kernel` draws the first state of a sampling, `reverse_kernel` takes one step after a call of
the denoiser. Seed, images, positions, held tokens, temperature and the counter are read from the
device, so that a captured CUDA graph can be replayed with others; coefficients are arguments.

One lane makes the four numbers of one Philox block, for four channels of a token. States are those
of the NumPy rule but for the last bits of logarithms and exponentials.
"""

from __future__ import annotations

import triton
import triton.language as tl

WORDS = tl.constexpr(4)  # of a block, as in runtime.normals
TWO_PI = tl.constexpr(6.283185307179586)
UNIT = tl.constexpr(2.3283064365386963e-10)  # 2^-32

COUNTS = ["batch", "length", "groups", "draw", "next_timestep", "has_variance", "has_held"]
WEIGHTS = [
    *("x0_from_state", "x0_from_noise", "mean_x0", "mean_x", "log_upper", "log_lower"),
    *("held_signal", "held_noise"),
]


@triton.jit
def _cos_sin(turns):
    """Cosine and sine of float64 turns in [0, 1], by their series.

    The library's would be functions to call, which the merged module has no place for.
    """
    quarter = tl.floor(4.0 * turns + 0.5)
    x = TWO_PI * (turns - 0.25 * quarter)  # at most pi / 4
    y = x * x
    s = 1.0 - y * (1.0 / 156.0) * (1.0 - y * (1.0 / 210.0))
    s = 1.0 - y * (1.0 / 72.0) * (1.0 - y * (1.0 / 110.0) * s)
    s = x * (1.0 - y * (1.0 / 6.0) * (1.0 - y * (1.0 / 20.0) * (1.0 - y * (1.0 / 42.0) * s)))
    c = 1.0 - y * (1.0 / 132.0) * (1.0 - y * (1.0 / 182.0) * (1.0 - y * (1.0 / 240.0)))
    c = 1.0 - y * (1.0 / 30.0) * (1.0 - y * (1.0 / 56.0) * (1.0 - y * (1.0 / 90.0) * c))
    c = 1.0 - y * (1.0 / 2.0) * (1.0 - y * (1.0 / 12.0) * c)
    is_odd = (quarter == 1.0) | (quarter == 3.0)
    cos, sin = tl.where(is_odd, s, c), tl.where(is_odd, c, s)
    cos = tl.where((quarter == 1.0) | (quarter == 2.0), -cos, cos)
    return cos, tl.where((quarter == 2.0) | (quarter == 3.0), -sin, sin)


@triton.jit
def _pair(first, second):
    """Two normal numbers of two words, float32."""
    u = (first.to(tl.uint32).to(tl.float64) + 0.5) * UNIT
    cos, sin = _cos_sin((second.to(tl.uint32).to(tl.float64) + 0.5) * UNIT)
    radius = tl.sqrt(-2.0 * tl.log(u))
    return (radius * cos).to(tl.float32), (radius * sin).to(tl.float32)


@triton.jit
def _normals(seed, images, positions, row, token, group, groups, second, is_lane):
    """The four numbers of a block."""
    position = tl.load(positions + token, mask=is_lane, other=0)
    image = tl.load(images + row, mask=is_lane, other=0)
    low = tl.full([], 0xFFFFFFFF, tl.int64)
    x0, x1, x2, x3 = tl.philox(
        tl.load(seed),
        (position * groups + group).to(tl.uint32),
        (second + position * 0).to(tl.uint32),
        (image & low).to(tl.uint32),
        ((image >> 32) & low).to(tl.uint32),
    )
    z0, z1 = _pair(x0, x1)
    z2, z3 = _pair(x2, x3)
    return z0, z1, z2, z3


@triton.jit
def _hold(x, first, held_tokens, is_held, held_signal, held_noise):
    """The state, with held tokens noised by the first noise in their places."""
    token = tl.load(held_tokens, mask=is_held, other=0.0)
    return tl.where(is_held, held_signal * token + held_noise * first, x)


@triton.jit(do_not_specialize=[*COUNTS, *WEIGHTS])
def start_kernel(
    state, first, timestep, held_tokens, held, positions, images, seed, counter,
    batch, length, groups, next_timestep, has_held, held_signal, held_noise,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Draws the first noise. Grid (ceil(B * n * C / 4 / BLOCK),).

    Args:
        state, first: (B, n, C) float32, written: the state before the first call of the denoiser,
            and the noise that it comes from.
        timestep: (1,) int32, written: `next_timestep`.
        held_tokens: (B, n, C) float32, read where held.
        held: (B, n) bool, read if `has_held`.
        positions: (B, n) int32, of the tokens in their grid.
        images: (B,) int64, the bits of the image numbers.
        seed: (1,) int64, its bits.
        counter: (1,) int32, word 1 of the counter for draw 0.
        groups: C / 4.
        held_signal, held_noise: shares of a held token and of the first noise in the state.
    """
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token, group = lane // groups, lane % groups
    num_tokens = batch * length
    is_lane = token < num_tokens
    is_held = tl.load(held + token, mask=token < num_tokens * has_held, other=0) != 0
    row = token // length
    z0, z1, z2, z3 = _normals(
        seed, images, positions, row, token, group, groups, tl.load(counter), is_lane
    )
    for word in tl.static_range(4):
        z = z0 if word == 0 else z1 if word == 1 else z2 if word == 2 else z3
        at = lane.to(tl.int64) * WORDS + word
        x = _hold(z, z, held_tokens + at, is_held, held_signal, held_noise)
        tl.store(first + at, z, mask=is_lane)
        tl.store(state + at, x, mask=is_lane)
    if tl.program_id(0) == 0:
        tl.store(timestep, next_timestep)


@triton.jit
def _reverse(
    z, state, first, noise, variance, held_tokens, is_lane, is_held, is_learned, temperature,
    draw, x0_from_state, x0_from_noise, mean_x0, mean_x, log_upper, log_lower, held_signal,
    held_noise,
):  # fmt: skip
    x = tl.load(state, mask=is_lane, other=0.0)
    x0 = x0_from_state * x - x0_from_noise * tl.load(noise, mask=is_lane, other=0.0)
    mean = mean_x0 * x0 + mean_x * x
    value = tl.load(variance, mask=is_learned, other=1.0)
    upper = (value + 1.0) / 2.0
    log_variance = upper * log_upper + (1.0 - upper) * log_lower
    x = mean + tl.where(draw > 0, tl.exp(log_variance / 2.0) * z * temperature, 0.0)
    first_noise = tl.load(first, mask=is_held, other=0.0)
    x = _hold(x, first_noise, held_tokens, is_held, held_signal, held_noise)
    tl.store(state, x, mask=is_lane)


@triton.jit(do_not_specialize=[*COUNTS, *WEIGHTS])
def reverse_kernel(
    state, first, noise, variance, timestep, held_tokens, held, positions, images, seed, counter,
    temperature, batch, length, groups, draw, next_timestep, has_variance, has_held,
    x0_from_state, x0_from_noise, mean_x0, mean_x, log_upper, log_lower, held_signal, held_noise,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One reverse step. Grid as of `start_kernel`, and so are the arguments that are not here.

    Args:
        state: (B, n, C) float32, replaced by the state before the next call.
        noise, variance: (B, n, C) float32, what the denoiser said; variance is read if
            `has_variance`, else the log-variance is `log_upper`.
        temperature: (1,) float32.
        draw: number of this step's noise; 0 = it has none.
        x0_from_state, x0_from_noise: weights of the predicted token, the second subtracted.
        mean_x0, mean_x: weights of predicted token and state in the mean.
        log_upper, log_lower: ends of the log-variance.
    """
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token, group = lane // groups, lane % groups
    num_tokens = batch * length
    is_lane = token < num_tokens
    is_held = tl.load(held + token, mask=token < num_tokens * has_held, other=0) != 0
    row = token // length
    z0, z1, z2, z3 = _normals(
        seed, images, positions, row, token, group, groups, tl.load(counter) + draw, is_lane
    )
    scale, is_learned = tl.load(temperature), token < num_tokens * has_variance
    for word in tl.static_range(4):
        z = z0 if word == 0 else z1 if word == 1 else z2 if word == 2 else z3
        at = lane.to(tl.int64) * WORDS + word
        _reverse(
            z, state + at, first + at, noise + at, variance + at, held_tokens + at, is_lane,
            is_held, is_learned, scale, draw, x0_from_state, x0_from_noise, mean_x0, mean_x,
            log_upper, log_lower, held_signal, held_noise,
        )  # fmt: skip
    if tl.program_id(0) == 0:
        tl.store(timestep, next_timestep)
