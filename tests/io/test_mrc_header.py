import bz2
import gzip
from pathlib import Path

import pytest

from cryoformer_dist.errors import ParticleFormatError
from cryoformer_dist.io.mrc_header import HEADER_BYTES, MRCHeader, check_length, compression_module, refuse_other_kinds


def header(path: Path, **changes: object) -> MRCHeader:
    values = {
        **{
            "path": path,
            "sections": 2,
            "rows": 3,
            "columns": 4,
            "mode": 1,
            "data_offset": 1024,
        },
        **{"voxel_size_angstrom": (1.5, 1.5, 0.0), "axes": (1, 2, 3)},
    }
    return MRCHeader(**(values | changes))


@pytest.mark.parametrize(("mode", "item"), [(0, 1), (1, 2), (2, 4), (6, 2), (12, 2)])
def test_length_counts_every_pixel_and_the_extended_header(mode, item):
    assert header(Path("a"), mode=mode, data_offset=1024 + 80).expected_bytes == 1024 + 80 + 24 * item


def test_length_does_not_wrap_at_32_bits():
    large = header(Path("a"), sections=2_000_000, rows=512, columns=512, mode=2)
    assert large.expected_bytes == 1024 + 2_000_000 * 512 * 512 * 4


def test_pixel_size_is_that_along_x():
    assert header(Path("a")).pixel_size_angstrom == 1.5


def test_file_of_just_the_right_length_passes_and_one_byte_less_does_not(tmp_path):
    path = tmp_path / "a.mrcs"
    path.write_bytes(bytes(1024 + 48))
    check_length(header(path))
    path.write_bytes(bytes(1024 + 47))
    with pytest.raises(ParticleFormatError, match=r"1072 bytes .* has 1071"):
        check_length(header(path))


def test_compression_is_told_by_content_not_by_name(tmp_path):
    path = tmp_path / "a.mrcs"
    content = bytes(range(256)) * 8
    for packed, module in ((gzip.compress(content), gzip), (bz2.compress(content), bz2), (content, None)):
        path.write_bytes(packed)
        assert compression_module(path) is module


def test_map_mark_wins_over_what_looks_like_compression(tmp_path):
    path = tmp_path / "a.mrcs"
    path.write_bytes(b"\x1f\x8b" + bytes(206) + b"MAP " + bytes(812))
    assert compression_module(path) is None


@pytest.mark.parametrize("mode", [b"\x0c\0\0\0", b"\0\0\0\x0c", b"\x65\0\0\0"])
def test_modes_of_mrc_pass_in_both_byte_orders(tmp_path, mode):
    path = tmp_path / "a.mrcs"
    path.write_bytes(bytes(12) + mode + bytes(1008))
    refuse_other_kinds(path)


@pytest.mark.parametrize("content", [bytes(12) + b"\x05\0\0\0" + bytes(1008), bytes(1023), b"%PDF-1.7 " * 200])
def test_other_kinds_are_refused(tmp_path, content):
    path = tmp_path / "a.mrcs"
    path.write_bytes(content)
    with pytest.raises(ParticleFormatError, match="not an MRC file"):
        refuse_other_kinds(path)


def test_an_extended_header_longer_than_the_file_takes_no_memory(tmp_path):
    header = bytearray(HEADER_BYTES)
    header[12:16], header[92:96] = (2).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "a.mrc").write_bytes(header)
    with pytest.raises(ParticleFormatError, match="extended header of 2147483647 bytes, and 0 bytes follow"):
        refuse_other_kinds(tmp_path / "a.mrc")


def test_a_promised_extended_header_that_is_absent_is_named(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(bytes(1024 + 48))
    with pytest.raises(ParticleFormatError, match=r"extended header of 80 bytes that is not there.*nsymbt"):
        check_length(header(path, data_offset=1024 + 80))


def test_a_compressed_file_is_read_no_further_than_its_header_promises(tmp_path):
    path = tmp_path / "a.mrc.gz"
    # What comes after would be an error if it were read.
    path.write_bytes(gzip.compress(bytes(1 << 21), mtime=0)[:-8])
    check_length(header(path))
