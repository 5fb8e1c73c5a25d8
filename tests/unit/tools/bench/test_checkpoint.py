"""The table of what a checkpoint costs."""

import checkpoint


def test_ratios_are_of_the_same_round() -> None:
    common = {"state_bytes": 1e9, "saving": 1e9, "loading": 1.5e9, "others": 0.5}
    rounds = [
        {**common, "stall": 0.1, "save": 1.0, "load": 1.0, "torch_save": 2.0, "torch_load": 0.5},
        {**common, "stall": 0.4, "save": 4.0, "load": 2.0, "torch_save": 4.0, "torch_load": 2.0},
        {**common, "stall": 0.2, "save": 2.0, "load": 4.0, "torch_save": 1.0, "torch_load": 3.0},
    ]
    columns = [column.strip() for column in checkpoint.row("10M", rounds).strip("|").split("|")]
    assert columns == [
        *("10M", "1.00", "0.200", "0.10x (0.05-0.20)"),
        *("0.50", "0.50", "1.00x (0.50-2.00)"),
        *("0.50", "0.50", "0.75x (0.50-1.00)"),
        *("2.00x (2.00-2.00)", "2.50x (2.50-2.50)", "0.50 (0.50-0.50)"),
    ]
    assert len(columns) == len(checkpoint.COLUMNS)
