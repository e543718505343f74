import numpy as np
import pytest

from cryowgen_jax.io.tilts import read_tilt_angles
from cryowgen_jax.types import InputError


def test_layouts(tmp_path):
    path = tmp_path / "a.tlt"
    path.write_text("\ufeff# tilts\n\n  -60.01\n-3e1 # low dose\r\n\t0\n 45.5  \n\n-45.5")
    angles = read_tilt_angles(path)
    assert angles.dtype == np.float32
    np.testing.assert_array_equal(angles, np.array([-60.01, -30, 0, 45.5, -45.5], np.float32))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\n2\nthree\n", r"line 3: 'three'.*-90 and 90"),
        ("1\n\n# c\n2 3\n", "line 4: '2 3'"),
        ("0\n91\n", "line 2: '91'"),
        ("-90.5\n", "line 1"),
        ("nan\n", "line 1: 'nan'"),
        ("0\ninf\n", "line 2"),
        ("", "no tilt angle"),
        ("# nothing\n\n", "no tilt angle"),
    ],
)
def test_unusable(tmp_path, text, words):
    path = tmp_path / "a.rawtlt"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_tilt_angles(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_text_missing_or_folder(tmp_path):
    (tmp_path / "a.tlt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="not a text file"):
        read_tilt_angles(tmp_path / "a.tlt")
    with pytest.raises(InputError, match=r"cannot read.*No such file"):
        read_tilt_angles(tmp_path / "gone.tlt")
    with pytest.raises(InputError, match=r"cannot read.*directory"):
        read_tilt_angles(tmp_path)


def test_real_angles(shared_data):
    angles = read_tilt_angles(shared_data / "tilts_haadf_needle_pm76.rawtlt")
    np.testing.assert_array_equal(angles, np.arange(-76, 77, 2))
