"""HPCM's schedule: which latents each coding step carries, on grids of every size."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmcodec.exact.schedule import (
    CODED_FROM,
    GROUPS,
    PARTS,
    PHASE_IN_Y,
    SCALES,
    STEPS,
    STRIDE,
    TILE,
    Step,
    decimate,
    fold,
    grid,
    refine,
    unfold,
    valid,
)

M = 16  # eight groups of two channels
SIDES = st.integers(1, 19)
ALL_PARTS = [Step(-1, scale, part, groups) for scale in SCALES for part, groups in enumerate(PARTS[scale])]


def part_name(step: Step) -> str:
    return f"{step.scale}-part{step.part}"


def mask_on_grid(step: Step, rows: int, columns: int) -> np.ndarray:
    """bool (rows, columns, groups of the scale): where a part has its groups, on the grid of its scale."""
    mask = np.zeros((rows, columns, GROUPS[step.scale]), bool)
    for g, offsets in enumerate(step.groups):
        for r, c in offsets:
            mask[r :: TILE[step.scale], c :: TILE[step.scale], g] = True
    return mask


def coded_in_y(h: int, w: int, step: Step) -> np.ndarray:
    """bool (h, w, M): the latents of y that a part carries, found by sending their numbers through the schedule."""
    numbers = np.arange(1, h * w * M + 1).reshape(1, h, w, M)
    rows, columns = grid(step.scale, h, w)
    on_grid = decimate(numbers, step.scale, np.zeros((1, rows, columns, M), int))
    folded = fold(on_grid, step, np.zeros((1, rows, columns, M // GROUPS[step.scale]), int))
    return np.asarray(np.isin(numbers[0], folded[folded > 0]))


def scale_set(h: int, w: int, scale: str) -> np.ndarray:
    """bool (h, w, M): what is known of y once `scale` is coded."""
    return np.asarray(np.any([coded_in_y(h, w, step) for step in ALL_PARTS if step.scale == scale], axis=0))


def test_eleven_steps_two_three_six() -> None:
    assert [step.index for step in STEPS] == list(range(11))
    assert [step.scale for step in STEPS] == ["s1"] * 2 + ["s2"] * 3 + ["s3"] * 6
    assert [step.part for step in STEPS] == [0, 1, 1, 2, 3, 2, 3, 4, 5, 6, 7]
    assert [step.index for step in STEPS if step.last_of_scale] == [1, 4, 10]


@pytest.mark.parametrize("scale", SCALES)
def test_parts_of_a_scale_are_disjoint_and_cover_it(scale: str) -> None:
    counts = sum(mask_on_grid(step, 8, 8).astype(int) for step in ALL_PARTS if step.scale == scale)
    np.testing.assert_array_equal(counts, 1)


@pytest.mark.parametrize("step", ALL_PARTS, ids=part_name)
def test_a_part_carries_one_group_at_every_position(step: Step) -> None:
    np.testing.assert_array_equal(mask_on_grid(step, 8, 8).sum(2), 1)


def test_s3_parts_are_the_stated_ones() -> None:
    # HPCM's positions in the 4x4 tile (P0..P7), and for each part the pattern of g0..g7, as its authors list them.
    patterns = ["00 22", "02 20", "11 33", "13 31", "01 23", "03 21", "10 32", "12 30"]
    parts = ["02461357", "13570246", "24603571", "35712460", "46025713", "57134602", "60247135", "71356024"]
    for groups, stated in zip(PARTS["s3"], parts, strict=True):
        assert [" ".join(f"{r}{c}" for r, c in offsets) for offsets in groups] == [patterns[int(p)] for p in stated]


def test_s1_set_on_a_tile_of_four_by_four_is_the_stated_one() -> None:
    known = scale_set(4, 4, "s1")
    stated = {0: "00", 1: "11", 2: "03", 3: "12", 4: "20", 5: "31", 6: "23", 7: "32"}
    for g, place in stated.items():
        of_group = known[:, :, 2 * g : 2 * g + 2]
        assert [f"{r}{c}" for r, c in np.argwhere(of_group.all(2))] == [place]
        assert of_group.sum() == 2


def test_s1_codes_one_half_of_the_channels_where_row_plus_column_is_even_first() -> None:
    mask = mask_on_grid(STEPS[0], 6, 6)
    even = np.add.outer(np.arange(6), np.arange(6)) % 2 == 0
    np.testing.assert_array_equal(mask[:, :, 0], even)
    np.testing.assert_array_equal(mask[:, :, 1], ~even)


@given(SIDES, SIDES)
def test_first_part_of_s2_is_the_s1_set_and_first_two_of_s3_are_the_s2_set(h: int, w: int) -> None:
    part = {(step.scale, step.part): coded_in_y(h, w, step) for step in ALL_PARTS}
    np.testing.assert_array_equal(part["s2", 0], scale_set(h, w, "s1"))
    np.testing.assert_array_equal(part["s3", 0] | part["s3", 1], scale_set(h, w, "s2"))


@given(SIDES, SIDES)
def test_every_latent_is_coded_once(h: int, w: int) -> None:
    np.testing.assert_array_equal(sum(coded_in_y(h, w, step).astype(int) for step in STEPS), 1)


def test_docs_decoding_has_this_schedule() -> None:
    text = (Path(__file__).parent.parent / "docs" / "DECODING.md").read_text(encoding="utf-8")
    for step in STEPS:
        side = TILE[step.scale]
        pattern = np.full((side, side), "")
        for group, offsets in enumerate(step.groups):
            for offset in offsets:
                pattern[offset] = str(group)
        assert f"| {step.index} | {step.scale} | {' / '.join(map(''.join, pattern))} |" in text
    for scale, phases in PHASE_IN_Y.items():
        offsets_in_y = " ".join(f"{row}{column}" for row, column in phases)
        assert f"| {scale} | {'all 00' if scale == 's3' else offsets_in_y} |" in text


@pytest.mark.parametrize("step", STEPS, ids=part_name)
def test_shares_are_a_32nd_a_16th_and_an_8th(step: Step) -> None:
    share = {"s1": 1 / 32, "s2": 1 / 16, "s3": 1 / 8}[step.scale]
    assert coded_in_y(16, 24, step).mean() == share


@given(SIDES, SIDES, st.sampled_from(ALL_PARTS))
def test_validity_is_what_exists_in_y_and_none_where_all_does(h: int, w: int, step: Step) -> None:
    rows, columns = grid(step.scale, h, w)
    ones = decimate(np.ones((1, h, w, M), int), step.scale, np.zeros((1, rows, columns, M), int))
    exists = fold(ones, step, np.zeros((1, rows, columns, M // GROUPS[step.scale]), int)).astype(bool)
    mask = valid(step, h, w, M)
    if mask is None:
        assert exists.all()
    else:
        np.testing.assert_array_equal(mask, exists)
        assert not exists.all()


def test_one_latent_position_has_two_groups_at_s2_and_one_at_s1_and_empty_steps() -> None:
    assert [int(coded_in_y(1, 1, step).sum()) for step in STEPS] == [2, 0, 0, 2, 0, 2, 2, 2, 2, 2, 2]


@given(SIDES, SIDES, st.sampled_from(SCALES))
def test_the_grid_of_a_scale_is_the_size_divided_and_rounded_up(h: int, w: int, scale: str) -> None:
    s = STRIDE[scale]
    assert grid(scale, h, w) == ((h + s - 1) // s, (w + s - 1) // s)


@given(SIDES, SIDES, st.sampled_from(ALL_PARTS), st.integers(1, 2))
def test_fold_and_unfold_are_inverses(h: int, w: int, step: Step, batch: int) -> None:
    rows, columns = grid(step.scale, h, w)
    n = M // GROUPS[step.scale]
    folded = np.arange(1, batch * rows * columns * n + 1).reshape(batch, rows, columns, n)
    target = np.full((batch, rows, columns, M), -1)
    unfolded = unfold(folded, step, target)
    np.testing.assert_array_equal(fold(unfolded, step, np.zeros_like(folded)), folded)
    elsewhere = ~np.repeat(mask_on_grid(step, rows, columns), n, 2)
    np.testing.assert_array_equal(unfolded[:, elsewhere], -1)


@pytest.mark.parametrize(("coarse", "fine"), [("s1", "s2"), ("s2", "s3")])
@given(SIDES, SIDES)
def test_refine_puts_back_what_decimate_took(coarse: str, fine: str, h: int, w: int) -> None:
    numbers = np.arange(1, h * w * M + 1).reshape(1, h, w, M)

    def on(scale: str) -> np.ndarray:
        return np.asarray(decimate(numbers, scale, np.zeros((1, *grid(scale, h, w), M), int)))

    refined = refine(on(coarse), coarse, np.zeros_like(on(fine)))
    known = refined > 0
    np.testing.assert_array_equal(refined[known], on(fine)[known])
    inherited = [step for step in ALL_PARTS if step.scale == fine and step.part < CODED_FROM[fine]]
    expected = np.zeros_like(refined)
    for step in inherited:
        unfold(fold(on(fine), step, np.zeros((*on(fine).shape[:3], M // GROUPS[fine]), int)), step, expected)
    np.testing.assert_array_equal(refined, expected)


@given(SIDES, SIDES)
def test_s3_is_y_itself(h: int, w: int) -> None:
    numbers = np.arange(1, h * w * M + 1).reshape(1, h, w, M)
    np.testing.assert_array_equal(decimate(numbers, "s3", np.zeros_like(numbers)), numbers)
