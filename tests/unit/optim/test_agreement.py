from megaqk.optim.agreement import difference_table, require_same_list


def test_lists_that_agree_have_no_table() -> None:
    assert difference_table([["a", "b"]] * 3) == ""
    assert difference_table([]) == ""


def test_the_table_names_place_variant_and_ranks() -> None:
    lists = [["decay", "upper_qk"], ["decay"], ["decay", "upper_qk"], ["decay", "all_qk"]]
    assert difference_table(lists).splitlines() == [
        "  1: upper_qk  on ranks 0, 2",
        "  1: none      on ranks 1",
        "  1: all_qk    on ranks 3",
    ]


def test_many_ranks_are_counted() -> None:
    assert (
        difference_table([["a"]] * 12 + [["b"]]).splitlines()[0] == "  0: a  on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    )


def test_one_process_has_nothing_to_compare() -> None:
    require_same_list(["a"], "letters")
