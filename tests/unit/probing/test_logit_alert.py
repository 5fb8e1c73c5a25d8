from math import inf, nan

from megaqk.probing.logit_alert import LogitAlert


def test_tells_once_and_again_after_a_fall() -> None:
    alert = LogitAlert(10.0)
    assert alert.look([[1.0, 10.0], [nan, -3.0]]) is None
    assert alert.look([[11.0, 2.0], [nan, 12.0]]) == (12.0, 1, 1)
    assert alert.look([[inf, 2.0], [0.0, 12.0]]) is None
    assert alert.look([[9.0, 2.0], [0.0, 1.0]]) is None
    assert alert.look([[inf, 2.0], [0.0, 12.0]]) == (inf, 0, 0)
    assert LogitAlert(10.0, above=True).look([[11.0]]) is None
