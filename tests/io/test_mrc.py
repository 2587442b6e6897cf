import bz2
import gzip
import itertools
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from support.simulated_particles import write_stack

from cryoformer_dist.errors import ParticleFormatError, PixelSizeConflictWarning
from cryoformer_dist.io.mrc import (
    new_stack,
    open_stack,
    read_header,
    read_volume,
    write_volume,
)
from cryoformer_dist.physics.volume import Volume

MODES = {
    "int8": (-128, 127),
    "int16": (-32768, 32767),
    "float32": (-7, 7),
    "uint16": (0, 65535),
    "float16": (-9, 9),
}


def patch(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as handle:
        handle.seek(offset)
        handle.write(content)


@pytest.fixture
def images(rng):
    return rng.normal(size=(5, 8, 8)).astype(np.float32)


@pytest.fixture
def volume(rng):
    return Volume(torch.from_numpy(rng.normal(size=(6, 6, 6)).astype(np.float32)), 1.75)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", MODES)
def test_every_mode_and_byte_order_reads_its_values(tmp_path, rng, write_mrcs, kind, byte_order):
    low, high = MODES[kind]
    pixels = rng.uniform(low, high, (3, 4, 4)).astype(np.dtype(kind).newbyteorder(byte_order))
    pixels[0, 0, :2] = low, high
    stack = open_stack(write_mrcs(tmp_path / "stack.mrcs", pixels, 1.5))
    assert (len(stack), stack.box_size) == (3, 4)
    assert stack.pixel_size_angstrom == pytest.approx(1.5)
    read = stack.read([2, 0, 1])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, pixels[[2, 0, 1]].astype(np.float32))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_stack_equals_the_plain_one(tmp_path, images, write_mrcs, compress):
    plain = write_mrcs(tmp_path / "plain.mrcs", images)
    packed = tmp_path / "packed.mrcs.z"
    packed.write_bytes(compress(plain.read_bytes()))
    np.testing.assert_array_equal(open_stack(packed).read(range(5)), images)


def test_empty_map_mark_is_read(tmp_path, images, write_mrcs):
    path = write_mrcs(tmp_path / "stack.mrcs", images)
    patch(path, 208, b"\0\0\0\0")
    np.testing.assert_array_equal(open_stack(path).read([4]), images[4:])


def test_wrong_machine_stamp_is_seen_through(tmp_path, images, write_mrcs):
    path = write_mrcs(tmp_path / "stack.mrcs", images)
    patch(path, 212, b"\x11\x11\0\0")
    np.testing.assert_array_equal(open_stack(path).read([1]), images[1:2])


def test_extended_header_is_skipped(tmp_path, images):
    path = tmp_path / "stack.mrcs"
    with mrcfile.new(path, images) as created:
        created.set_extended_header(np.frombuffer(b"x" * 1234, dtype="V1"))
    assert read_header(path).data_offset == 1024 + 1234
    np.testing.assert_array_equal(open_stack(path).read([0, 3]), images[[0, 3]])


def test_trailing_bytes_are_ignored(tmp_path, images, write_mrcs):
    path = write_mrcs(tmp_path / "stack.mrcs", images)
    path.write_bytes(path.read_bytes() + b"tail")
    np.testing.assert_array_equal(open_stack(path).read([4]), images[4:])


def test_image_beyond_four_gigabytes_is_the_right_one(tmp_path, rng):
    box, count = 1024, 1030
    path = tmp_path / "large.mrcs"
    last = rng.normal(size=(1, box, box)).astype(np.float32)
    write_stack(path, last, 1.0)
    patch(path, 8, np.int32(count).tobytes())
    offset = 1024 + (count - 1) * last.nbytes
    os.truncate(path, offset + last.nbytes)
    patch(path, offset, last.tobytes())
    assert path.stat().st_size > 2**32
    stack = open_stack(path)
    np.testing.assert_array_equal(stack.read(np.asarray([count - 1], dtype=np.uint32)), last)
    assert not stack.read([count - 2]).any()


def test_single_image_is_a_stack_of_one(tmp_path, images, write_mrcs):
    stack = open_stack(write_mrcs(tmp_path / "one.mrc", images[0]))
    assert len(stack) == 1
    np.testing.assert_array_equal(stack.read([0]), images[:1])


def test_unset_pixel_size_is_zero(tmp_path, images, write_mrcs):
    assert open_stack(write_mrcs(tmp_path / "stack.mrcs", images)).pixel_size_angstrom == 0


@pytest.mark.parametrize("index", [-1, 5])
def test_index_outside_the_stack_is_refused(tmp_path, images, write_mrcs, index):
    with pytest.raises(IndexError, match="images 0 to 4"):
        open_stack(write_mrcs(tmp_path / "stack.mrcs", images)).read([0, index])


def test_truncated_stack_names_both_sizes(tmp_path, images, write_mrcs):
    path = write_mrcs(tmp_path / "stack.mrcs", images)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ParticleFormatError, match=r"stack\.mrcs: truncated.* 2304 bytes .* has 2303"):
        open_stack(path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_truncated_compressed_stack_is_refused(tmp_path, rng, write_mrcs, compress):
    noise = rng.normal(size=(4, 64, 64)).astype(np.float32)
    packed = compress(write_mrcs(tmp_path / "plain.mrcs", noise).read_bytes())
    path = tmp_path / "packed.mrcs"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(ParticleFormatError, match=r"packed\.mrcs: (truncated|cannot be read)"):
        open_stack(path)


def test_short_content_in_a_whole_compressed_file_is_refused(tmp_path, images, write_mrcs):
    plain = write_mrcs(tmp_path / "plain.mrcs", images).read_bytes()
    path = tmp_path / "packed.mrcs.gz"
    path.write_bytes(gzip.compress(plain[:-100]))
    with pytest.raises(ParticleFormatError, match="has 2204"):
        open_stack(path)


@pytest.mark.parametrize("content", [b"", b"too short", b"plain text " * 200, bytes(2048)])
def test_other_files_are_refused_with_their_name(tmp_path, content):
    path = tmp_path / "notes.mrcs"
    path.write_bytes(content)
    with pytest.raises(ParticleFormatError, match=r"notes\.mrcs"):
        open_stack(path)


def test_missing_file_names_datadir_as_remedy(tmp_path):
    with pytest.raises(ParticleFormatError, match=r"no such file.*--datadir"):
        open_stack(tmp_path / "absent.mrcs")


def test_oblong_images_are_refused(tmp_path, images, write_mrcs):
    with pytest.raises(ParticleFormatError, match="6 x 8 pixels are not square"):
        open_stack(write_mrcs(tmp_path / "stack.mrcs", images[:, :6]))


def test_complex_images_are_refused(tmp_path, images, write_mrcs):
    with pytest.raises(ParticleFormatError, match=r"mode 4 \(complex64\)"):
        open_stack(write_mrcs(tmp_path / "stack.mrcs", images.astype(np.complex64)))


def test_stack_of_volumes_is_refused(tmp_path, rng):
    path = tmp_path / "volumes.mrcs"
    mrcfile.write(path, rng.normal(size=(2, 4, 4, 4)).astype(np.float32))
    with pytest.raises(ParticleFormatError, match="stack of volumes"):
        open_stack(path)


def test_blocks_written_one_by_one_equal_the_whole(tmp_path, images):
    with new_stack(tmp_path / "blocks.mrcs", 1.25, ["made in blocks"]) as writer:
        writer.append(images[:2])
        writer.append(images[2:2])
        writer.append(images[2:])
    write_stack(tmp_path / "whole.mrcs", images, 1.25, ["made in blocks"])
    np.testing.assert_array_equal(open_stack(tmp_path / "blocks.mrcs").read(range(5)), images)
    with mrcfile.open(tmp_path / "blocks.mrcs") as blocks, mrcfile.open(tmp_path / "whole.mrcs") as whole:
        assert blocks.is_image_stack()
        assert blocks.voxel_size.x == pytest.approx(1.25)
        assert blocks.get_labels() == ["made in blocks"]
        for name in ("dmin", "dmax", "dmean", "rms"):
            assert blocks.header[name] == pytest.approx(float(whole.header[name]), rel=1e-6)
        assert blocks.header.rms == pytest.approx(images.std(), rel=1e-5)
    assert mrcfile.validate(tmp_path / "blocks.mrcs")


def test_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path, images):
    path = tmp_path / "stack.mrcs"
    write_stack(path, images[:1], 1.0)
    before = path.read_bytes()

    def fail_half_way() -> None:
        with new_stack(path, 1.0) as writer:
            writer.append(images)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((2, 8, 6)), "do not extend"),
        (np.zeros((2, 4, 4)), "do not extend"),
        (np.full((1, 8, 8), np.nan), "NaN"),
    ],
)
def test_images_that_do_not_fit_are_not_written(tmp_path, images, bad, words):
    def write() -> None:
        with new_stack(tmp_path / "stack.mrcs", 1.0) as writer:
            writer.append(images)
            writer.append(bad)

    with pytest.raises(ValueError, match=words):
        write()
    assert not list(tmp_path.iterdir())


def test_empty_stack_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        write_stack(tmp_path / "stack.mrcs", np.zeros((0, 8, 8)), 1.0)
    assert not list(tmp_path.iterdir())


def test_volume_round_trips_with_scale_place_and_provenance(tmp_path, volume):
    path = tmp_path / "map.mrc"
    write_volume(path, volume, ["trained by cryoformer-dist", "x" * 200, "5 \u00c5"] + ["more"] * 20)
    back = read_volume(path)
    assert torch.equal(back.voxels, volume.voxels)
    assert back.voxel_size_angstrom == pytest.approx(1.75)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as written:
        assert written.is_volume()
        assert int(written.header.ispg) == 1
        labels = written.get_labels()
        assert labels[:3] == ["trained by cryoformer-dist", "x" * 80, "5 ?"]
        assert len(labels) == 10
        origin = written.header.origin
        centre = [float(origin[axis]) + 3 * float(written.voxel_size[axis]) for axis in "xyz"]
        np.testing.assert_allclose(centre, 0, atol=1e-6)


def test_equal_volumes_are_equal_files(tmp_path, volume):
    for name in ("one.mrc", "two.mrc"):
        write_volume(tmp_path / name, volume)
    assert (tmp_path / "one.mrc").read_bytes() == (tmp_path / "two.mrc").read_bytes()
    assert b"cryoformer-dist" in (tmp_path / "one.mrc").read_bytes()


def test_volume_with_nan_is_not_written(tmp_path, volume):
    volume.voxels[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 voxels that are not finite"):
        write_volume(tmp_path / "map.mrc", volume)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
def test_axis_order_of_the_file_does_not_matter(tmp_path, volume, axes):
    # Stored axis k (slowest first) runs along maps, mapr, mapc; ours along z=3, y=2, x=1.
    stored = volume.voxels.numpy().transpose([3 - axis for axis in reversed(axes)])
    path = tmp_path / "map.mrc"
    with mrcfile.new(path, np.ascontiguousarray(stored)) as created:
        created.set_volume()
        created.voxel_size = 1.75
        created.header.mapc, created.header.mapr, created.header.maps = axes
    assert torch.equal(read_volume(path).voxels, volume.voxels)


def test_map_without_axis_order_is_taken_as_xyz(tmp_path, volume):
    path = tmp_path / "map.mrc"
    write_volume(path, volume)
    patch(path, 64, bytes(12))
    assert torch.equal(read_volume(path).voxels, volume.voxels)


def test_map_that_is_no_cube_is_refused_with_its_shape(tmp_path, rng):
    path = tmp_path / "map.mrc"
    mrcfile.write(path, rng.normal(size=(4, 6, 8)).astype(np.float32), voxel_size=1.0)
    with pytest.raises(ParticleFormatError, match="4 x 6 x 8 voxels"):
        read_volume(path)


def test_map_with_unequal_voxel_sides_is_refused(tmp_path, rng):
    path = tmp_path / "map.mrc"
    mrcfile.write(path, rng.normal(size=(4, 4, 4)).astype(np.float32), voxel_size=(1.0, 1.0, 1.2))
    with pytest.raises(ParticleFormatError, match=r"1, 1, 1\.2 A differ"):
        read_volume(path)


def test_map_without_voxel_size_is_warned_about(tmp_path, rng):
    path = tmp_path / "map.mrc"
    mrcfile.write(path, rng.normal(size=(4, 4, 4)).astype(np.float32))
    with pytest.warns(PixelSizeConflictWarning, match="no voxel size"):
        assert read_volume(path).voxel_size_angstrom == 1.0


def test_a_map_with_a_voxel_that_is_not_finite_is_refused_with_its_place(tmp_path, volume):
    path = tmp_path / "map.mrc"
    write_volume(path, volume)
    box = volume.voxels.shape[-1]
    patch(path, 1024 + 4 * (2 * box * box + 1 * box + 3), np.float32(np.nan).tobytes())
    with pytest.raises(ParticleFormatError, match=r"map\.mrc: 1 voxels are not finite, the first at x 3, y 1, z 2"):
        read_volume(path)
